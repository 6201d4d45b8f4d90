"""Stand between Hydra and a run: schemas, exit statuses, one-line errors."""

import dataclasses
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lillama.config import RunConfig, Stage
from lillama.config.compose import set_up
from lillama.config.refused import refuse_words
from lillama.config.replay import replayed
from lillama.core.errors import BAD_INPUT, DONE, OTHER, ConfigError, Preempted, TeamError, WriteError, disk_trouble
from lillama.core.imports import of_many_objects
from lillama.core.preempt import PREEMPTED
from lillama.core.results import read_json
from lillama.core.terminal import printable, show
from lillama.report.summary import forecast_table, plan_table, summary

__all__ = ["CommandLine", "set_up", "typed"]
log = logging.getLogger(__name__)
USER_ERRORS = (ConfigError, HydraException, OmegaConfBaseException)
NULL_GROUP = "Config group override must be a string or a list"  # Hydra, naming no key
RESOLVING = "ConfigError raised while resolving interpolation: "  # OmegaConf, before our own message
NO_MEMORY = "can't allocate memory"  # torch, of the host's
ONE_LINE_ERRORS = (*USER_ERRORS, WriteError, TeamError)  # what a traceback would not explain better


class CommandLine:
    """One call of the command line: a single run, or the cells of a sweep."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, Exception]] = []

    def run_job(self, composed: DictConfig) -> None:
        """Run one composed configuration in Hydra's output folder and print its summary.

        A failed cell of a sweep keeps no model alive: Hydra holds on to its exception until the sweep is over.
        """
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        try:
            config = typed(composed)
            run = _pipeline()
            # Of two equal sweeps at a time each waits for the cell that the other one runs, and takes its result.
            multirun = hydra.mode is RunMode.MULTIRUN
            result = run(config, folder, hydra.overrides.task, choices=chosen(hydra.runtime.choices), wait=multirun)
            if int(os.environ.get("RANK", "0")):  # under torchrun the first process speaks
                return
            if config.stages == [Stage.plan]:
                show(plan_table(read_json(folder / "plan.json")) + "\n")
                if (folder / "forecast.json").is_file():
                    show(forecast_table(read_json(folder / "forecast.json")) + "\n")
            show(summary(result))
        except Preempted as asked:  # here, since in a launcher's job nobody above would know what it is
            show(asked, error=True)
            raise SystemExit(PREEMPTED) from None
        except Exception as error:
            if hydra.mode is RunMode.RUN:
                raise SystemExit(tell(error)) from None
            log.error("%s", one_line(error))
            self.failures.append((folder.name, error))
            let_go(error)
            raise

    def exit_status(self, main: Callable[[], None]) -> int:
        """Call Hydra's main and return its exit status.

        0 done, 2 bad input (told in one line), 1 anything else; a run that the system asked to end has left with 75.
        """
        try:
            sys.argv[1:] = replayed(sys.argv[1:])
            refuse_words(sys.argv[1:])
            main()
        except KeyboardInterrupt:
            show("interrupted: the run's folder is whole; the same command goes on with it", error=True)
            return OTHER
        except Exception as error:  # noqa: BLE001 - the last line of defence: tell and exit
            if self.failures:
                return self._tell_failures()
            if NULL_GROUP in str(error) and isinstance(error, ValueError):
                error = ConfigError(f"{null_words(sys.argv[1:])}: a group takes one of its options, or is left out")
            elif isinstance(error, OSError) and not isinstance(error, USER_ERRORS):
                error = ConfigError(f"hydra.run.dir: {error}")  # Hydra could not make the output folder
            return tell(error)
        return DONE

    def _tell_failures(self) -> int:
        """Print the failed cells of a sweep, a line each; bad input only where all of them were."""
        show(f"error: {len(self.failures)} cells of the sweep failed:", error=True)
        for name, error in self.failures:
            show(f"  {name}: {one_line(error)}", error=True)
        return BAD_INPUT if all(isinstance(error, USER_ERRORS) for _, error in self.failures) else OTHER


def chosen(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return the option of every group of ``conf/``, without Hydra's own groups and those that take none."""
    return {group: str(one) for group, one in sorted(choices.items()) if one and not group.startswith("hydra/")}


def _pipeline() -> Callable[..., dict[str, Any]]:
    """Import what runs: seconds of torch and transformers, which bad input need not wait for."""
    if "lillama.run.pipeline" not in sys.modules:
        with of_many_objects():
            importlib.import_module("lillama.run.pipeline")
    from lillama.run.pipeline import run

    return run


class KeepSweeps(Callback):
    """Refuse a sweep in a folder with another program's ``multirun.yaml``, before Hydra writes its own over it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """End the process with 2: Hydra makes warnings of a callback's exceptions.

        :raises SystemExit: where the file is there and holds no sweep of this package.
        """
        file = Path(config.hydra.sweep.dir) / "multirun.yaml"
        if file.exists() and not _is_our_sweep(file):
            why = f"hydra.sweep.dir={file.parent}: holds another program's {file.name}; choose another folder"
            raise SystemExit(tell(ConfigError(why)))


def _is_our_sweep(file: Path) -> bool:
    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(held, dict) and {"hydra", "strategy", "distill", "evaluate"} <= held.keys()


def null_words(words: Sequence[str]) -> str:
    """Return the words of a command line that give null."""
    return ", ".join(word for word in words if re.search(r"=.*\bnull\b", word))


def typed(composed: DictConfig) -> RunConfig:
    """Return a composed configuration as dataclasses, their ranges checked.

    :raises ConfigError: for a value out of range, or a key that was added past its schema (``+strategy.raito=0.5``).
    """
    try:
        config = OmegaConf.to_object(composed)
    except AttributeError as error:
        raise ConfigError(f"unknown key: {error}") from None
    assert isinstance(config, RunConfig)
    return config


def tell(error: BaseException) -> int:
    """Print what went wrong, bad input in one line; the exit status."""
    if isinstance(error, ONE_LINE_ERRORS):
        show(f"error: {one_line(error)}", error=True)
        return BAD_INPUT if isinstance(error, USER_ERRORS) else OTHER
    if (reason := disk_trouble(error)) is not None:
        show(f"error: {reason}", error=True)
        return OTHER
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        show(f"error: out of memory: {one_line(error)}", error=True)
        return BAD_INPUT
    show("".join(traceback.format_exception(error)), error=True)
    return OTHER


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; for an unknown key or option, with the legal ones."""
    told = list(chain_of(error, suppressed=False))
    text = " ".join(dict.fromkeys(str(part) for part in told if str(part) not in str(error) or part is error))
    text = re.sub(r"\bfull_key:.*|\bConfig search path:.*|\breference_type=.*|\b\w+_schema\b", "", text, flags=re.S)
    text = text.replace(RESOLVING, "")
    keys = next((legal_keys(part) for part in chain_of(error) if legal_keys(part)), None)
    return printable(" ".join(text.split())) + (f"; the keys are {', '.join(keys)}" if keys else "")


def legal_keys(error: BaseException) -> list[str]:
    """Return the keys of the schema that an unknown key was looked for in."""
    schema = getattr(error, "object_type", None)
    unknown = "not in" in str(error) and dataclasses.is_dataclass(schema)
    return [field.name for field in dataclasses.fields(schema)] if unknown and isinstance(schema, type) else []


def chain_of(error: BaseException, *, suppressed: bool = True) -> Iterator[BaseException]:
    """Yield an exception and what led to it.

    :param suppressed: what ``raise ... from None`` says is not to be told too.
    """
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        ends = seen.__suppress_context__ and seen.__cause__ is None and not suppressed
        seen = None if ends else seen.__cause__ or seen.__context__


def let_go(error: BaseException) -> None:
    """Clear the frames of an exception and of all that led to it; they hold the model."""
    for part in chain_of(error):
        traceback.clear_frames(part.__traceback__)
