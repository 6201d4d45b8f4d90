"""The ranks of a compressed model: from a dense model to empty low-rank modules, and back to a dense one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.quantization_config import QuantizationConfigMixin

from .lillama_checks import DAMAGED, check_fit, check_ranks, is_count
from .lillama_experts import LowRankExperts, expert_matrices, is_fused_experts
from .lillama_modules import ORDER, LowRankEmbedding, LowRankLinear, embedding_scale, is_table
from .lillama_pivoted import PivotedEmbedding, PivotedLinear

METHOD = "lillama"
FORMAT_VERSION = 3  # 2: experts and embeddings; 3: how factors are stored
PLAIN, PIVOTED = "plain", "pivoted"


class LowRankConfig(QuantizationConfigMixin):
    """The ranks of a compressed model, as ``config.json`` holds them.

    :param linear: module name to rank; Conv1D modules count as linear. :param embedding: the same for embeddings.
    :param experts: module name to {parameter: rank}. :param without_bias: the replaced linears lost their biases.
    :param factors: how all of them are stored, ``plain`` (as in every older format) or ``pivoted``.
    :param stock: the configuration of a stock quantizer that the factors went through; a dictionary where they are
        already stored so.
    :raises ValueError: for a checkpoint of a newer format, of factors that are stored in an unknown way, or a damaged
        entry.
    """

    def __init__(
        self,
        *,
        linear: Mapping[str, int] | None = None,
        embedding: Mapping[str, int] | None = None,
        experts: Mapping[str, Mapping[str, int]] | None = None,
        without_bias: bool = False,
        factors: str = PLAIN,
        stock: Any = None,
        format_version: int = FORMAT_VERSION,
        **_: Any,
    ) -> None:
        if not is_count(format_version):
            raise ValueError(f"{DAMAGED}: format_version is {format_version!r:.80}")
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"this checkpoint has format_version {format_version}; this lillama reads up to {FORMAT_VERSION}:"
                " upgrade it"
            )
        if factors not in (PLAIN, PIVOTED):
            raise ValueError(f"this checkpoint has factors {factors!r}, which are neither {PLAIN} nor {PIVOTED}")
        self.quant_method: Any = METHOD
        self.format_version = format_version
        self.linear = check_ranks("linear", {} if linear is None else linear)
        self.embedding = check_ranks("embedding", {} if embedding is None else embedding)
        if not isinstance(experts, Mapping | None):
            raise ValueError(f"{DAMAGED}: experts must map modules to ranks by parameter, and is {experts!r:.80}")
        self.experts = {module: check_ranks(f"experts.{module}", ranks) for module, ranks in (experts or {}).items()}
        if not isinstance(without_bias, bool):
            raise ValueError(f"{DAMAGED}: without_bias must be true or false, and is {without_bias!r:.80}")
        if not isinstance(stock, QuantizationConfigMixin | None) and not (
            isinstance(stock, dict) and isinstance(stock.get("quant_method"), str)
        ):
            raise ValueError(f"{DAMAGED}: stock is no quantizer's configuration ({stock!r:.80})")
        self.without_bias = without_bias
        self.factors = factors
        self.stock = stock

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds."""
        values = {key: value for key, value in vars(self).items() if key != "stock"}
        stock = self.stock if isinstance(self.stock, dict) or self.stock is None else self.stock.to_dict()
        return values | ({"stock": stock} if stock else {})

    @property
    def pivoted(self) -> bool:
        """Tell whether r columns of every B are the identity, which is not stored."""
        return self.factors == PIVOTED

    @property
    def guards(self) -> list[str]:
        """Return the dense names of all compressed matrices, under which a zero-size tensor each is saved.

        Each, because a reader may take a part of the model: a base model without the head, an encoder alone.
        """
        weights = [f"{name}.weight" for name in (*self.linear, *self.embedding)]
        return weights + [f"{module}.{name}" for module, ranks in self.experts.items() for name in ranks]


def install(model: Any, config: LowRankConfig) -> list[str]:
    """Put empty low-rank modules into a dense model, in place; returns their names in this model.

    :raises ValueError: for a module that the model does not have, or of another kind; a base model may lack the head.
    """
    installed = []
    for name, rank in config.linear.items():
        if (place := local_name(model, name)) is not None:
            bias = not config.without_bias
            dense = model.get_submodule(place)
            put(model, place, empty_linear(dense, rank, bias=bias, pivoted=config.pivoted, name=place))
            installed.append(place)
    for name, rank in config.embedding.items():
        if (place := local_name(model, name)) is not None:
            put(model, place, empty_embedding(model.get_submodule(place), rank, pivoted=config.pivoted, name=place))
            installed += [place, *tie_head(model, place)]
    for name, ranks in config.experts.items():
        if (place := local_name(model, name)) is not None:
            put(model, place, empty_experts(model.get_submodule(place), ranks, place, pivoted=config.pivoted))
            installed.append(place)
    return installed


def local_name(model: Any, name: str) -> str | None:
    """Return a saved module's name in this model; None where the model goes without a head, or without the whole stack.

    :raises ValueError: for a module that is not there and should be.
    """
    place = _found(model, name)
    if place is not None:
        return place
    parts = name.split(".")
    number = next((position for position, part in enumerate(parts) if part.isdigit()), None)
    if number is None:  # no block: an embedding or a head
        lacking = model.get_output_embeddings() is None
    else:  # an encoder alone has no decoder at all
        lacking = _found(model, ".".join(parts[:number])) is None
    if not lacking:
        raise ValueError(f"the checkpoint compresses {name}, which {type(model).__name__} does not have")
    return None


def _found(model: Any, name: str) -> str | None:
    """Return a module's name in this model, with or without the base model's prefix."""
    prefix = model.base_model_prefix
    for place in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        try:
            model.get_submodule(place)
        except AttributeError:
            continue
        return place
    return None


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one with this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def empty_linear(
    dense: Any, rank: int, *, bias: bool = True, pivoted: bool = False, name: str = "the matrix"
) -> LowRankLinear:
    """Return a low-rank linear in the shape of a Linear or Conv1D, its weights yet to be filled.

    :param name: what an error calls the module. :raises ValueError: for a module of another kind, or too large a rank.
    """
    if not isinstance(dense, nn.Linear | Conv1D):
        raise ValueError(f"{name}: a {type(dense).__name__} is no linear")
    check_fit(name, rank, dense.weight.shape)
    in_features, out_features = dense.weight.shape if isinstance(dense, Conv1D) else dense.weight.shape[::-1]
    place = {"dtype": dense.weight.dtype, "device": dense.weight.device}
    kind = PivotedLinear if pivoted else LowRankLinear
    return kind(in_features, out_features, rank, bias=bias and dense.bias is not None, **place)


def empty_embedding(dense: Any, rank: int, *, pivoted: bool = False, name: str = "the matrix") -> LowRankEmbedding:
    """Return a low-rank embedding in the shape of a dense one.

    :param name: what an error calls the module.
    :raises ValueError: for a module of another kind, or too large a rank.
    """
    if not is_table(dense):
        raise ValueError(f"{name}: a {type(dense).__name__} is no embedding")
    check_fit(name, rank, dense.weight.shape)
    more: dict[str, Any] = {"padding_idx": dense.padding_idx, "scale": embedding_scale(dense)}
    more |= {"dtype": dense.weight.dtype, "device": dense.weight.device}
    kind = PivotedEmbedding if pivoted else LowRankEmbedding
    return kind(dense.num_embeddings, dense.embedding_dim, rank, **more)


def empty_experts(dense: Any, ranks: Mapping[str, int], name: str, *, pivoted: bool = False) -> LowRankExperts:
    """Low-rank experts in the shape of fused ones, their factors yet to be filled.

    :raises ValueError: for a module of another kind, a parameter that it does not have, or too large a rank.
    """
    fused = dict(dense.named_parameters(recurse=False)) if is_fused_experts(dense) else {}
    for parameter, rank in ranks.items():
        if parameter not in fused or fused[parameter].dim() != 3:
            raise ValueError(f"{name}: a {type(dense).__name__} has no fused experts {parameter}")
        check_fit(f"{name}.{parameter}", rank, expert_matrices(dense, parameter).shape[1:])
    return LowRankExperts(dense, ranks, pivoted=pivoted)


def tied_head(model: Any, embedding: str) -> str | None:
    """Return the name of the head whose weight (or first factor) is the embedding's, by the model's configuration."""
    keys = getattr(model, "all_tied_weights_keys", None) or {}
    for weight in ("weight", "A.weight"):
        for target, source in keys.items():
            if source == f"{embedding}.{weight}":
                return target.removesuffix(f".{weight}")
    return None


def tie_head(model: Any, embedding: str) -> list[str]:
    """Give a tied head the factors of its low-rank embedding; the head's name, where there is one."""
    head = tied_head(model, embedding)
    if head is None:
        return []
    put(model, head, head_of(model.get_submodule(embedding), model.get_submodule(head)))
    note_tie(model, embedding, head)
    return [head]


def note_tie(model: Any, embedding: str, head: str) -> None:
    """Tell transformers that a head shares both factors of its embedding, instead of one weight."""
    pairs = {f"{head}.{factor}.weight": f"{embedding}.{factor}.weight" for factor in ("A", "B")}
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
        keys = dict(getattr(model, attribute, None) or {})
        keys.pop(f"{head}.weight", None)
        setattr(model, attribute, keys | pairs)


def head_of(embedding: LowRankEmbedding, dense: Any) -> LowRankLinear:
    """Return the head that shares an embedding's factors; its bias is the dense head's."""
    head = empty_linear(dense, embedding.rank, pivoted=embedding.pivoted)
    head.A.weight, head.B.weight = embedding.A.weight, embedding.B.weight
    share_order(head, embedding)
    if head.A.bias is not None and not head.A.bias.is_meta:
        with torch.no_grad():
            head.A.bias.copy_(dense.bias)
    return head


def share_order(head: Any, embedding: Any) -> None:
    """Let a head use the places of columns of its pivoted embedding; only there does a checkpoint hold them.

    Transformers ties parameters, no buffers: after a model was loaded this is to be done again.
    """
    for name in ORDER if embedding.pivoted else ():
        head.register_buffer(name, getattr(embedding, name), persistent=False)


def share_orders(model: Any, config: LowRankConfig) -> None:
    """:func:`share_order` for every head that is tied to a low-rank embedding of this model."""
    for name in config.embedding:
        place = local_name(model, name)
        if place is not None and (head := tied_head(model, place)) is not None:
            share_order(model.get_submodule(head), model.get_submodule(place))


@torch.no_grad()
def merge(model: Any, config: LowRankConfig) -> Any:
    """Multiply every pair of factors out, in place: the model is a plain dense one again.

    :raises ValueError: for a model whose weights are offloaded.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("dequantize() needs the weights in memory: load the model without offloading")
    with torch.device("meta"):
        dense = type(model)(model.config)
    mergers = dict.fromkeys((*config.linear, *config.embedding), _merged) | dict.fromkeys(
        config.experts, _merged_experts
    )
    for name, merged in mergers.items():
        if (place := local_name(model, name)) is not None:
            put(model, place, merged(model.get_submodule(place), dense.get_submodule(place)))
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys", "_weight_conversions", "save_pretrained"):
        vars(model).pop(attribute, None)
    model.all_tied_weights_keys = dense.all_tied_weights_keys
    for name in config.embedding:
        if (head := tied_head(model, str(local_name(model, name)))) is not None:
            put(model, head, _merged(model.get_submodule(head), dense.get_submodule(head)))
    model.tie_weights()
    del model.config.auto_map
    return model


def _merged(factors: Any, dense: Any) -> nn.Module:
    weight = factors.multiplied_out()
    dense.weight = nn.Parameter(weight.T.contiguous() if isinstance(dense, Conv1D) else weight)
    if isinstance(dense, nn.Embedding) and isinstance(factors.scale, Tensor):
        dense.embed_scale = factors.scale.to(weight.device)  # no checkpoint has it, and this one is on the meta device
    if getattr(dense, "bias", None) is not None:
        lost = factors.bias is None  # the biases of a model compressed without them are zero
        dense.bias = nn.Parameter(weight.new_zeros(len(weight)) if lost else factors.bias)
    return dense


def _merged_experts(factors: Any, dense: Any) -> nn.Module:
    for name, parameter in factors.named_parameters(recurse=False):
        setattr(dense, name, parameter)
    for name, child in factors.named_children():
        if name != "lowrank":
            setattr(dense, name, child)
    for name, pair in factors.lowrank.items():
        weights = pair.multiplied_out()
        setattr(dense, name, nn.Parameter(weights.transpose(1, 2).contiguous() if dense.is_transposed else weights))
    return dense
