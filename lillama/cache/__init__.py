"""Keep results between runs, by content: imported models, tokens, factorisations, scores, distilled models.

Needs no torch.
"""

from lillama.cache.entries import Entry, clear, entries, touch
from lillama.cache.folders import KINDS, default_root
from lillama.cache.store import Cache

__all__ = ["KINDS", "Cache", "Entry", "clear", "default_root", "entries", "touch"]
