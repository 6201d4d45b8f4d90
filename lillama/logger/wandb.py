"""``logger=wandb``: metrics against seen tokens, offline where no API key is set. wandb is imported here only."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lillama.config import LoggerConfig
from lillama.errors import ConfigError


class WandbLogger:
    """One W&B run a run; its group is the sweep's name and its summary holds the figures of ``results.json``."""

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

        self._run = wandb.init(
            project=config.project,
            group=config.group or group,
            name=folder.name,
            id=None if resume is None else resume.get("id"),
            resume=None if resume is None else "allow",
            tags=config.tags or None,
            dir=folder,
            mode=cast(Any, config.mode) or _default_mode(),
            config=settings,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, metrics: Mapping[str, float], *, tokens: int) -> None:
        """Log metrics at a number of seen tokens."""
        self._run.log({**metrics, "tokens": tokens})

    def state(self) -> dict[str, Any]:
        """The run's id: a run that goes on stays one run."""
        return {"id": self._run.id}

    def finish(self, summary: Mapping[str, Any], *, failed: bool = False) -> None:
        """Store the figures and close the run."""
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(failed))


def _default_mode() -> Any:
    """W&B's own choice where the user made one (WANDB_MODE) or has a key; offline otherwise."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen or os.environ.get("WANDB_API_KEY") or _has_netrc_key():
        return chosen or None  # wandb takes no empty one
    return "offline"


def _has_netrc_key() -> bool:
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    return file.is_file() and "api.wandb.ai" in file.read_text(errors="replace")
