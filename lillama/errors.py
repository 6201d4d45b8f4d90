"""The errors that a user meets, each with the exit status that ``run.py`` gives it."""


class ConfigError(ValueError):
    """The request is wrong (bad input); raised before a model is loaded. Exit status 2."""


class DivergedError(RuntimeError):
    """A loss, a perplexity or a weight is not finite: no figure may come out of this run."""


def require(condition: bool, key: str, value: object, legal: str) -> None:
    """Raise a one-line :class:`ConfigError` naming the key and its legal values."""
    if not condition:
        raise ConfigError(f"{key}={value}: {legal}")
