"""Environment variables: an empty one counts as one that is not set."""

import os

from lillama.core.errors import ConfigError

HINTS = {
    "LILLAMA_DATA": "it names the folder of texts and tasks that experiments read (experiments/README.md lists them)"
}
# Of this project and of the libraries that a run calls; several of these take an empty one for the current folder.
PREFIXES = ("LILLAMA_", "WANDB_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_HOME", "XDG_")


def variable(name: str, default: str | None = None) -> str:
    """Read a variable, or give its default where it is not set or empty.

    :raises ConfigError: where there is no default either.
    """
    value = os.environ.get(name) or default
    if value is None:
        hint = f"; {HINTS[name]}" if name in HINTS else ""
        raise ConfigError(f"the environment variable {name} is not set{hint}")
    return value


def forget_empty() -> None:
    """Remove the empty variables of this project and its libraries from the environment."""
    for name in [name for name, value in os.environ.items() if not value and name.startswith(PREFIXES)]:
        del os.environ[name]
