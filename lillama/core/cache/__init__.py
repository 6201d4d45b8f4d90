"""Keep results between runs, by content: imported models, tokens, factorisations, scores, distilled models.

Needs no torch.
"""

from lillama.core.cache.entries import Entry, clear, entries, touch
from lillama.core.cache.folders import KINDS, default_root
from lillama.core.cache.store import Cache

__all__ = ["KINDS", "Cache", "Entry", "clear", "default_root", "entries", "touch"]
