"""Lillama: one-shot compression of language models by low-rank feature distillation (arXiv 2412.16719).

Importing this package makes transformers load the compressed checkpoints that it writes.
"""

from lillama.model.checkpoint import load_checkpoint, save_checkpoint
from lillama.oneshot import compress
from lillama.runtime import register
from lillama.version import __version__

__all__ = ["__version__", "compress", "load_checkpoint", "save_checkpoint"]

register()
