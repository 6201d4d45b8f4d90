"""Register what Hydra needs to compose, and read an experiment's sweep without running it. Needs no torch."""

import os
import sysconfig
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig, OmegaConf

from lillama.config import register_schemas
from lillama.config.cells import cell_name
from lillama.core.environment import forget_empty, variable
from lillama.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MOST_CELLS = 100_000
CONF, EXPERIMENTS = ROOT / "conf", ROOT / "experiments"


def set_up() -> None:
    """Register schemas and resolvers, and forget empty environment variables; a second call does nothing."""
    forget_empty()
    register_schemas()
    OmegaConf.register_new_resolver("env", variable, replace=True)
    OmegaConf.register_new_resolver("cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("stdlib", lambda: sysconfig.get_path("stdlib"), replace=True)
    OmegaConf.register_new_resolver("options", group_options, replace=True)


def group_options() -> str:
    """List the groups and their options for ``--help``, a line each, as the files of ``conf/`` have them."""
    found: dict[str, list[str]] = {}
    for folder, _, files in os.walk(CONF, followlinks=True):
        group = Path(folder).relative_to(CONF).as_posix()
        if group.partition("/")[0] not in (".", "hydra"):
            found[group] = sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))
    lines = (f"{group}: {', '.join(options)}" for group, options in sorted(found.items()) if options)
    wrapped = (textwrap.fill(line, 116, subsequent_indent=" " * 4, break_on_hyphens=False) for line in lines)
    return textwrap.indent("\n".join(wrapped), "  ")


@dataclass(frozen=True, slots=True)
class Sweep:
    """An experiment's sweep: its folder's name, and the overrides of every cell.

    ``given`` is what a cell is where it overrides nothing: ``model`` and ``strategy.reduction``.
    """

    name: str
    cells: list[list[str]]
    given: dict[str, str]


def experiment_sweep(experiment: str) -> Sweep:
    """Read the sweep that ``python run.py experiments=SCALE/NAME`` would run.

    :param experiment: ``small/table02_zero_shot``.
    :raises ConfigError: for an experiment that there is not.

    >>> experiment_sweep("paper/table08_losses").cells[0]
    ['model=phi2', 'init=svd', 'loss=teacher']
    """
    if experiment not in experiment_names():
        raise ConfigError(f"experiments={experiment}: there is none; there are {', '.join(experiment_names())}")
    whole = composed([f"experiments={experiment}"], with_hydra=True)
    given = {"model": whole.model.name, "reduction": str(whole.strategy.reduction)}
    return Sweep(whole.name, sweep_cells(whole.hydra.sweeper.params or {}), given)


def composed(words: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose what a command line would, its interpolations as they stand.

    :param with_hydra: Hydra's own configuration too: the mode, the sweep, the chosen options.
    """
    set_up()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(words), return_hydra_config=with_hydra)


def experiment_names() -> list[str]:
    """Return all experiments, as ``SCALE/NAME``."""
    return sorted(f"{file.parent.name}/{file.stem}" for file in (CONF / "experiments").glob("*/*.yaml"))


def scales_of(name: str) -> list[str]:
    """Return the scales that an experiment has: ``["paper", "small", "tiny"]``; none of a name that there is not."""
    return [scale for scale, own in (file.split("/") for file in experiment_names()) if own == name]


def sweep_cells(params: Mapping[str, Any], task: Sequence[str] = ()) -> list[list[str]]:
    """Return the overrides of every cell of a sweep; of a single run, one cell.

    :param params: what the sweep varies, as its configuration has it.
    :param task: what was said on the command line beside what the experiment sweeps itself.
    :raises ConfigError: for more cells than anybody can have run.
    """
    parsed = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *task])
    count = 1
    for override in parsed:
        if override.is_sweep_override() and not isinstance(override.value(), Glob):
            count *= sum(1 for _ in islice(override.sweep_iterator(), MOST_CELLS + 1))
            if count > MOST_CELLS:
                raise ConfigError(f"{override.input_line}: a sweep of more than {MOST_CELLS:,} cells")
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]
