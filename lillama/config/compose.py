"""Register what Hydra needs to compose, and read an experiment's sweep without running it. Needs no torch."""

import sysconfig
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

from lillama.config import ExperimentConfig, register_schemas
from lillama.config.cells import cell_name
from lillama.core.environment import forget_empty, variable
from lillama.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MOST_CELLS = 100_000
SCALE = "paper"  # where none is asked for
CONF, EXPERIMENTS = ROOT / "conf", ROOT / "experiments"


def set_up() -> None:
    """Schemas, resolvers and an environment without empty variables; a second call does nothing."""
    forget_empty()
    register_schemas()
    OmegaConf.register_new_resolver("env", variable, replace=True)
    OmegaConf.register_new_resolver("cell", cell_name, replace=True)
    OmegaConf.register_new_resolver("stdlib", lambda: sysconfig.get_path("stdlib"), replace=True)
    OmegaConf.register_new_resolver("at", at_scale, replace=True)
    OmegaConf.register_new_resolver("of_model", of_model, replace=True)


def at_scale(values: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """Pick the value for the scale of the run: ``${at:{paper:1024,small:144}}``.

    :raises ConfigError: for a scale that the experiment does not have.
    """
    scale = _root_.scale
    if scale not in values:
        raise ConfigError(f"scale={scale}: this experiment has {', '.join(values)}")
    return values[scale]


def of_model(values: Mapping[str, Any], other: Any, *, _root_: DictConfig) -> Any:
    """Pick the value for the model of the run, or for any other: ``${of_model:{phi3_medium_14b:1536},1024}``."""
    return values.get(_root_.model.name, other)


@dataclass(frozen=True, slots=True)
class Sweep:
    """An experiment at a scale: its folder's name, its tables, and the overrides of every cell.

    ``given`` is what a cell is where it overrides nothing: ``model`` and ``strategy.reduction``.
    """

    name: str
    experiment: ExperimentConfig
    cells: list[list[str]]
    given: dict[str, str]


def experiment_sweep(name: str, scale: str | None, overrides: Sequence[str] = ()) -> Sweep:
    """Read the sweep that ``python run.py experiments=NAME scale=SCALE`` would run.

    :raises ConfigError: for an experiment, or a scale of it, that there is not.
    """
    if name not in experiment_names():
        raise ConfigError(f"experiments={name}: there is none; there are {', '.join(experiment_names())}")
    set_up()
    GlobalHydra.instance().clear()
    words = [f"experiments={name}", *([f"scale={scale}"] if scale else []), *overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        whole = compose("config", overrides=words, return_hydra_config=True)
    experiment = OmegaConf.to_object(whole.experiment)
    assert isinstance(experiment, ExperimentConfig)
    given = {"model": whole.model.name, "reduction": str(whole.strategy.reduction)}
    return Sweep(whole.name, experiment, sweep_cells(whole.hydra.sweeper.params or {}), given)


def experiment_names() -> list[str]:
    """Return all experiments."""
    return sorted(file.stem for file in EXPERIMENTS.glob("*.yaml"))


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
