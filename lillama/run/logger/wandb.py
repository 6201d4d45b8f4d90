"""``logger=wandb``: metrics against seen tokens, offline where W&B cannot be used. wandb is imported here only."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from lillama.config import LoggerConfig
from lillama.core.errors import ConfigError

log = logging.getLogger(__name__)
OWN_PLACES = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
PATIENCE = 20  # seconds for W&B's server to answer; its own 90 would hold up a run without a network


class WandbLogger:
    """One W&B run a run; its group is the sweep's name and its summary holds the figures of ``results.json``.

    Without a key, or where the server does not answer, it is logged offline, into its folder, and a warning says so.
    """

    def __init__(
        self,
        config: LoggerConfig,
        folder: Path,
        *,
        group: str,
        settings: dict[str, Any],
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError("logger=wandb: needs the package wandb (pip install wandb), or use logger=csv") from None

        def begin(mode: str) -> Any:
            return wandb.init(
                project=config.project,
                group=config.group or group,
                name=folder.name,
                id=None if resume is None else resume.get("id"),
                resume=None if resume is None else "allow",
                tags=config.tags or None,
                dir=folder,
                mode=cast(Any, mode),
                config=settings,
                settings=wandb.Settings(console="off", silent=True, init_timeout=PATIENCE),
            )

        _settle_without_home(folder)
        mode = _mode(config.mode, wandb.Settings().base_url)
        self._run = _first_that_begins(begin, list(dict.fromkeys([mode, "offline", "disabled"])))
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, metrics: Mapping[str, float], *, tokens: int) -> None:
        """Log metrics at a number of seen tokens."""
        self._run.log({**metrics, "tokens": tokens})

    def state(self) -> dict[str, Any]:
        """Return the run's id: a run that goes on stays one run."""
        return {"id": self._run.id}

    def finish(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        """Store the figures and close the run."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(failed))


def _mode(asked: str | None, server: str) -> str:
    """The configured mode, else WANDB_MODE, else online; what is online needs a key and is offline without one."""
    chosen = asked or os.environ.get("WANDB_MODE") or None
    if chosen not in (None, "online", "shared"):
        return chosen
    if _has_key(server):
        return chosen or "online"
    if chosen is not None:
        _say_offline("there is no API key: run `wandb login`, or set WANDB_API_KEY")
    return "offline"


def _first_that_begins(begin: Callable[[str], Any], modes: Sequence[str]) -> Any:
    """Return the run in the first of the modes in which W&B can begin it; the last, in which it does nothing, must."""
    for mode, after in pairwise(modes):
        try:
            return begin(mode)
        except Exception as error:  # noqa: BLE001 - a key that is refused, no network: each in an error of its own
            reason = " ".join(str(error).split())[:200]
            _say_offline(reason) if after == "offline" else log.warning("logger=wandb: nothing is logged (%s)", reason)
    return begin(modes[-1])


def _say_offline(reason: str) -> None:
    log.warning("logger=wandb: logged offline, `wandb sync` sends it later (%s)", reason)


def _settle_without_home(folder: Path) -> None:
    """Have W&B keep its own files in the run's folder where there is no home to keep them in."""
    try:
        home = Path("~").expanduser()
    except RuntimeError:
        home = None
    if home is None or not os.access(home, os.W_OK):
        for name in OWN_PLACES:
            os.environ.setdefault(name, str(folder / "wandb"))


def _has_key(server: str) -> bool:
    """Tell whether W&B would find a key for its server without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or server).netloc
    try:
        return host in Path(os.environ.get("NETRC") or "~/.netrc").expanduser().read_text(errors="replace")
    except (OSError, RuntimeError):  # no such file, or no home
        return False
