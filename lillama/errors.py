"""The errors that a user meets, each with the exit status that ``run.py`` gives it."""


class ConfigError(ValueError):
    """The request is wrong (bad input); raised before a model is loaded. Exit status 2."""


class DivergedError(RuntimeError):
    """A loss, a perplexity or a weight is not finite: no figure may come out of this run."""


class DeviceMemoryError(ConfigError):
    """The device has no memory left for what was asked; the message says which setting to lower."""


class SnapshotError(RuntimeError):
    """A snapshot could not be written; those before it are whole."""


class TeamError(RuntimeError):
    """Another process of the same run is gone."""


class Preempted(BaseException):
    """The system asked the run to end (SIGTERM, SIGUSR1, SIGUSR2). Exit status 75: the same command goes on with it."""


POSITIVE = "must be a positive integer"


def require(condition: bool, key: str, value: object, legal: str) -> None:
    """Raise a one-line :class:`ConfigError` naming the key and its legal values."""
    if not condition:
        raise ConfigError(f"{key}={value}: {legal}")
