"""Lillama: one-shot compression of language models by low-rank feature distillation (arXiv 2412.16719).

Importing this package makes transformers load the compressed checkpoints that it writes. It imports neither torch nor
transformers by itself, so that a command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lillama.core.lazy_import import on_import
from lillama.core.version import __version__

if TYPE_CHECKING:
    from lillama.model.checkpoint import load_checkpoint, save_checkpoint
    from lillama.run.api import compress

__all__ = ["__version__", "compress", "load_checkpoint", "save_checkpoint"]
_HOMES = {
    "compress": "lillama.run.api",
    "load_checkpoint": "lillama.model.checkpoint",
    "save_checkpoint": "lillama.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    from lillama.model.lowrank import register

    register()


on_import("transformers.modeling_utils", _register)  # every model's class needs it
