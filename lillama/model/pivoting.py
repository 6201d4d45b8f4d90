"""A compressed model of plain factors becomes one of pivoted factors: the same function in fewer numbers."""

from typing import Any

import torch
from torch import nn

from lillama.algebra.pivot import pivoted
from lillama.algebra.spectrum import Factors
from lillama.model.lowrank import (
    PIVOTED,
    FactorPair,
    LowRankConfig,
    LowRankEmbedding,
    LowRankExperts,
    LowRankLinear,
    PivotedEmbedding,
    PivotedLinear,
    PivotedPair,
    mark,
    share_orders,
)


@torch.no_grad()
def pivot_model(model: Any) -> Any:
    """Pivot all factors of a model in place, and mark it so that ``save_pretrained`` writes it as it is then.

    :param model: of plain factors, as ``from_pretrained`` gives it; what it ties stays tied.
    """
    shared: dict[int, Any] = {}  # by the factor that an embedding and its head have in common
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankLinear | LowRankEmbedding):
            model.set_submodule(name, _pivoted_module(module, shared))
        elif isinstance(module, LowRankExperts):
            module.pivoted = True
            pairs: Any = module.lowrank
            for key, pair in pairs.items():
                pairs[key] = _pivoted_pair(pair)
    own = model.config.quantization_config
    ranks = {"linear": own.linear, "embedding": own.embedding, "experts": own.experts}
    config = LowRankConfig(**ranks, without_bias=own.without_bias, factors=PIVOTED)
    share_orders(model, config)
    mark(model, config)
    return model


def _pivoted_module(plain: Any, shared: dict[int, Any]) -> nn.Module:
    known = id(plain.A.weight)
    if known not in shared:
        made = pivoted(Factors(plain.A.weight, plain.B.weight))
        # With the plain ones, so that their ids stay theirs.
        shared[known] = (*map(_parameter, made[:2]), *made[2:], plain)
    a, b, pivots, rest, _ = shared[known]
    with torch.device("meta"):
        module: Any
        if isinstance(plain, LowRankEmbedding):
            module = PivotedEmbedding(
                plain.num_embeddings, plain.embedding_dim, plain.rank, plain.padding_idx, plain.scale
            )
        else:
            module = PivotedLinear(plain.in_features, plain.out_features, plain.rank, bias=plain.bias is not None)
            module.A.bias = plain.A.bias
    module.A.weight, module.B.weight, module.pivots, module.rest = a, b, pivots, rest
    return module.train(plain.training)


def _pivoted_pair(plain: FactorPair) -> FactorPair:
    made = pivoted(Factors(plain.A, plain.B))
    experts, _, rank = plain.A.shape
    pair: Any = PivotedPair(plain.B.new_empty(experts, 1, plain.B.shape[-1], device="meta"), rank)
    pair.A, pair.B = map(_parameter, made[:2])
    pair.pivots, pair.rest = made[2:]
    return pair.train(plain.training)


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
