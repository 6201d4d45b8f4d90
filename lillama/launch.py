"""What stands between Hydra and a run: schemas, exit statuses, one-line errors."""

import dataclasses
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lillama.compose import set_up
from lillama.config import RunConfig, Stage
from lillama.errors import ConfigError, Preempted, SnapshotError, TeamError
from lillama.report.summary import forecast_table, plan_table, summary
from lillama.results import read_json

__all__ = ["Session", "set_up", "typed"]
log = logging.getLogger(__name__)
DONE, OTHER, BAD_INPUT = 0, 1, 2
PREEMPTED = 75  # EX_TEMPFAIL: what a scheduler is told to start again
USER_ERRORS = (ConfigError, HydraException, OmegaConfBaseException)
ONE_LINE_ERRORS = (*USER_ERRORS, SnapshotError, TeamError)  # what a traceback would not explain better


class Session:
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
            from lillama.pipeline import run  # seconds of torch and transformers, which bad input need not wait for

            result = run(config, folder, hydra.overrides.task)
            if int(os.environ.get("RANK", "0")):  # under torchrun the first process speaks
                return
            if config.stages == [Stage.plan]:
                print(plan_table(read_json(folder / "plan.json")), end="\n\n")
                if (folder / "forecast.json").is_file():
                    print(forecast_table(read_json(folder / "forecast.json")), end="\n\n")
            print(summary(result), flush=True)
        except Preempted as asked:  # here, since in a launcher's job nobody above would know what it is
            print(asked, file=sys.stderr)
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
            main()
        except KeyboardInterrupt:
            print("interrupted: the run's folder is whole; the same command goes on with it", file=sys.stderr)
            return OTHER
        except Exception as error:  # noqa: BLE001 - the last line of defence: tell and exit
            if self.failures:
                return self._tell_failures()
            if isinstance(error, OSError) and not isinstance(error, USER_ERRORS):
                error = ConfigError(f"hydra.run.dir: {error}")  # Hydra could not make the output folder
            return tell(error)
        return DONE

    def _tell_failures(self) -> int:
        """Print the failed cells of a sweep, a line each; bad input only where all of them were."""
        print(f"error: {len(self.failures)} cells of the sweep failed:", file=sys.stderr)
        for name, error in self.failures:
            print(f"  {name}: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT if all(isinstance(error, USER_ERRORS) for _, error in self.failures) else OTHER


def typed(composed: DictConfig) -> RunConfig:
    """A composed configuration as dataclasses, their ranges checked.

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
        print(f"error: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, USER_ERRORS) else OTHER
    traceback.print_exception(error)
    return OTHER


def one_line(error: BaseException) -> str:
    """An error's message on one line; for an unknown key or option, with the legal ones."""
    text = " ".join(
        dict.fromkeys(str(part) for part in chain_of(error) if str(part) not in str(error) or part is error)
    )
    text = re.sub(r"\bfull_key:.*|\bConfig search path:.*|\breference_type=.*|\b\w+_schema\b", "", text, flags=re.S)
    keys = next((legal_keys(part) for part in chain_of(error) if legal_keys(part)), None)
    return " ".join(text.split()) + (f"; the keys are {', '.join(keys)}" if keys else "")


def legal_keys(error: BaseException) -> list[str]:
    """The keys of the schema that an unknown key was looked for in."""
    schema = getattr(error, "object_type", None)
    unknown = "not in" in str(error) and dataclasses.is_dataclass(schema)
    return [field.name for field in dataclasses.fields(schema)] if unknown and isinstance(schema, type) else []


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def let_go(error: BaseException) -> None:
    """Clear the frames of an exception and of all that led to it; they hold the model."""
    for part in chain_of(error):
        traceback.clear_frames(part.__traceback__)
