"""Hydra's compositions in less time: what depends on files and groups alone is made once a process.

A configuration's values are laid over a copy of it, and a file that has changed is read again. What is kept is pickled:
that makes a copy ten times as fast as ``copy.deepcopy``.
"""

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig


def stamps(sources: Iterable[ConfigSource], paths: Iterable[str | None]) -> tuple[object, ...]:
    """Where files come from, and when each was changed; None where there is none."""
    where = [(source.provider, source.scheme(), source.path) for source in sources]
    folders = [Path(path) for _, scheme, path in where if scheme == "file"]
    files = [folder / f"{str(path).removesuffix('.yaml')}.yaml" for path in paths for folder in folders]
    return (*where, *(changed(file) for file in files))


def changed(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def read_once(load: Callable[..., ConfigResult | None]) -> Callable[..., ConfigResult | None]:
    known: dict[object, bytes] = {}

    @wraps(load)
    def load_config(repo: ConfigRepository, config_path: str) -> Any:
        key = (config_path, stamps(repo.sources, [config_path]))
        if key not in known:
            known[key] = pickle.dumps(load(repo, config_path))
        return pickle.loads(known[key])

    return load_config


def where_it_is_used(make: Callable[..., DictConfig]) -> Callable[..., DictConfig | None]:
    """What interpolations of a defaults list may name; Hydra makes it for every file."""

    @wraps(make)
    def interpolation_map(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig | None:
        return make(overrides, defaults, self_added) if "${" in repr(defaults) else None

    return interpolation_map


def listed_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """The defaults list of the same groups; the values among the overrides have no part in it."""
    known: dict[object, tuple[list[str], tuple[object, ...], Any]] = {}

    @wraps(make)
    def create(repo: Any, config_name: str, overrides_list: list[Override], **options: bool) -> Any:
        groups: list[Override] = []
        values: list[Override] = []
        for word in overrides_list:
            if not word.is_sweep_override():
                is_group = repo.group_exists(word.key_or_group) and not isinstance(word.value(), dict)
                (groups if is_group else values).append(word)
        where = stamps(repo.get_sources(), [])
        key = (where, config_name, tuple(word.input_line for word in groups), tuple(options.items()))
        if key not in known or known[key][1] != stamps(repo.get_sources(), known[key][0]):
            made = make(repo, config_name, groups, **options)
            files = [path.removeprefix("config_path=") for path in repo.cache]
            known[key] = (files, stamps(repo.get_sources(), files), made)
        listed = copy.copy(known[key][2])
        listed.config_overrides = values
        return listed

    return create


def merged_once(merge: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """The merge of a defaults list. Neighbours below one key (a group's schema and its option, all of a group of
    groups) are merged by themselves first: many lists have them, and the whole is merged a third as often."""
    known: dict[object, bytes] = {}

    def once(key: object, make: Callable[[], DictConfig]) -> Any:
        if key not in known:
            known[key] = pickle.dumps(make())
        return pickle.loads(known[key])

    @wraps(merge)
    def compose(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> Any:
        def key_of(some: list[ResultDefault]) -> object:
            return repr(some), stamps(repo.get_sources(), (default.config_path for default in some))

        def in_parts() -> DictConfig:
            parts = [list(part) for _, part in groupby(defaults, lambda default: _top(default) or id(default))]
            made = [once(key_of(part), partial(merge, loader, part, repo)) for part in parts]
            return merge(_Made(made), [part[-1] for part in parts], repo)

        return once(key_of(defaults), in_parts)

    return compose


def _top(default: ResultDefault) -> str:
    """The first key that a file's content goes under; empty for one that may have any."""
    return (default.package or "").partition(".")[0]


class _Made:
    """A loader whose files are configurations that lie ready, in this order."""

    def __init__(self, configs: list[DictConfig]) -> None:
        self.left = iter(configs)

    def _load_single_config(self, default: ResultDefault, repo: Any) -> Any:
        return SimpleNamespace(config=next(self.left))


PARTS = (
    (ConfigRepository, "load_config", read_once),
    (defaults_list, "_create_interpolation_map", where_it_is_used),
    (config_loader_impl, "create_defaults_list", listed_once),
    (ConfigLoaderImpl, "_compose_config_from_defaults_list", merged_once),
)


@contextmanager
def from_parts() -> Iterator[None]:
    """Hydra keeps the files it has read and, by groups, the defaults lists and what they merge to."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, quick in PARTS:
            patch.setattr(owner, name, quick(getattr(owner, name)))
        yield
