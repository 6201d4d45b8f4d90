"""Refuse words that Hydra would take and that mean nothing: old names, with the new one, and schemas as options."""

from collections.abc import Sequence

from lillama.config.compose import CONF, experiment_names, scales_of
from lillama.core.errors import ConfigError


def refuse_words(words: Sequence[str]) -> None:
    """Check the words of a command line; wrong ones of another kind are Hydra's to refuse.

    :raises ConfigError: for ``experiments=NAME scale=SCALE``, which is ``experiments=SCALE/NAME``, and for
        ``loss=loss_schema``: a schema has no values.
    """
    said = dict(word.partition("=")[::2] for word in words)
    for group, option in said.items():
        if option.endswith("_schema") and (CONF / group).is_dir():
            options = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
            raise ConfigError(f"{group}: a schema is no option; there are {', '.join(options)}")
    if "experiments" in said:
        _refuse_old_experiment(said["experiments"], said.get("scale"))


def _refuse_old_experiment(name: str, scale: str | None) -> None:
    bench = f"bench/{name.removeprefix('bench_')}"
    if name.startswith("bench_") and bench in experiment_names():
        raise ConfigError(f"experiments={name}: is called experiments={bench}")
    scales = scales_of(name)
    if not scales:
        return
    if scale is None or scale in scales:
        old = f"experiments={name}" + (f" scale={scale}" if scale else "")
        now = [f"experiments={one}/{name}" for one in ([scale] if scale else scales)]
        raise ConfigError(f"{old}: is called {' or '.join(now)}")
    raise ConfigError(f"experiments={name} scale={scale}: this experiment has {', '.join(scales)}")
