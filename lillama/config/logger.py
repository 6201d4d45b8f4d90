"""Configure where metrics go."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from lillama.config.choices import LoggerKind
from lillama.config.option import option
from lillama.core.errors import require


@option("logger", "logger")
@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Destination of metrics; ``mode`` null is offline where no W&B key is set."""

    kind: LoggerKind = MISSING
    project: str = "lillama"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str | None = None

    def __post_init__(self) -> None:
        legal = "must be online, offline, disabled, or null"
        require(self.mode in (None, "online", "offline", "disabled"), "logger.mode", self.mode, legal)
