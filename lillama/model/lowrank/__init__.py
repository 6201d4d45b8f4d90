"""Hold what a compressed checkpoint needs to run; a copy of every file here travels with each of them.

``trust_remote_code=True`` loads the copies where the package is not installed. So the files import nothing of the
package but each other, know no architecture, and carry the project's name: they lie among a model's other files.
"""

from lillama.model.lowrank.lillama_experts import (
    FactorPair,
    LowRankExperts,
    PivotedPair,
    expert_matrices,
    is_fused_experts,
)
from lillama.model.lowrank.lillama_format import (
    FORMAT_VERSION,
    METHOD,
    PIVOTED,
    PLAIN,
    LowRankConfig,
    empty_embedding,
    empty_linear,
    head_of,
    install,
    merge,
    note_tie,
    share_orders,
    tied_head,
)
from lillama.model.lowrank.lillama_modules import (
    FactoredWeight,
    LowRank,
    LowRankEmbedding,
    LowRankLinear,
    embedding_scale,
    is_table,
    product,
)
from lillama.model.lowrank.lillama_pivoted import PivotedEmbedding, PivotedLinear
from lillama.model.lowrank.lillama_plugin import RUNTIME_FILES, LowRankQuantizer, mark, register

__all__ = [
    "FORMAT_VERSION",
    "METHOD",
    "PIVOTED",
    "PLAIN",
    "RUNTIME_FILES",
    "FactorPair",
    "FactoredWeight",
    "LowRank",
    "LowRankConfig",
    "LowRankEmbedding",
    "LowRankExperts",
    "LowRankLinear",
    "LowRankQuantizer",
    "PivotedEmbedding",
    "PivotedLinear",
    "PivotedPair",
    "embedding_scale",
    "empty_embedding",
    "empty_linear",
    "expert_matrices",
    "head_of",
    "install",
    "is_fused_experts",
    "is_table",
    "mark",
    "merge",
    "note_tie",
    "product",
    "register",
    "share_orders",
    "tied_head",
]
