"""The errors that a user meets, each with the exit status that ``run.py`` gives it."""

import errno
import os

DONE, OTHER, BAD_INPUT = 0, 1, 2  # exit statuses of every command; core/preempt.py has that of a request to end


class ConfigError(ValueError):
    """The request is wrong (bad input); raised before a model is loaded. Exit status 2."""


class DivergedError(RuntimeError):
    """A loss, a perplexity or a weight is not finite: no figure may come out of this run."""


class DeviceMemoryError(ConfigError):
    """The device has no memory left for what was asked; the message says which setting to lower."""


class WriteError(RuntimeError):
    """A file of a run could not be written: a full disk, a quota, no permission."""


class SnapshotError(WriteError):
    """A snapshot could not be written; those before it are whole."""


class TeamError(RuntimeError):
    """Another process of the same run is gone."""


class Preempted(BaseException):
    """The system asked the run to end (SIGTERM, SIGUSR1, SIGUSR2). Exit status 75: the same command goes on with it."""


# What a disk says that takes no more; libraries that write in C++ or Rust say it in their own errors.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
DISK = (*FULL, errno.EACCES, errno.EPERM, errno.EIO)
POSITIVE = "must be a positive integer"


def disk_trouble(error: BaseException) -> str | None:
    """Name the file and the reason of an error by which a disk refuses; None for any other error."""
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return next((text for text in map(os.strerror, FULL) if text in str(error)), None)


def require(condition: bool, key: str, value: object, legal: str) -> None:
    """Raise a one-line :class:`ConfigError` naming the key and its legal values."""
    if not condition:
        raise ConfigError(f"{key}={value}: {legal}")
