"""Collect second moments of the gradients at the outputs of matrices, while a model runs backward."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lillama.algebra.moments import DiagonalMoment, Moment
from lillama.config import OutputMoment
from lillama.init.moments import InputCollector
from lillama.model.lowrank import embedding_scale, expert_matrices, is_table
from lillama.model.surgery import matrix, owner

# Of a linear or an embedding: E[g g^T] [out, out] or its diagonal. Of fused experts: one an expert.
OutputMoments = Moment | DiagonalMoment | list[Moment | DiagonalMoment]


class OutputCollector:
    """Adds the gradients of every named matrix's outputs to a moment of its own.

    :param inputs: the collector of the same matrices' inputs, which knows which positions count.
    :param kind: how much of a moment is kept; a prediction head with a row a token has the diagonal in any case.
    """

    def __init__(self, inputs: InputCollector, kind: OutputMoment) -> None:
        self.inputs = inputs
        self.kind = kind
        self.moments: dict[str, OutputMoments] = {}
        self._head: str | None = None
        self._spread: Tensor | None = None  # of the head's rows, see spread_head

    def of(self, name: str) -> OutputMoments:
        """Hand over the moment of a matrix; a head's is shared out among its rows by :meth:`spread_head`."""
        moment = self.moments.pop(name)
        spread = self._spread if name == self._head else None
        # A model may give other logits than its head does.
        if spread is not None and isinstance(moment, DiagonalMoment) and len(spread) == len(moment.total):
            moment.total = spread * (moment.total.sum() / spread.sum().clamp_min(1e-300))
        return moment

    def spread_head(self, variance: Callable[[], Tensor]) -> None:
        """Add to what a head's moment is shared out by among its rows, where a head is collected.

        :param variance: makes the expected squared gradients [V] at a batch's logits. The gradients of the text's own
            labels say little of tokens that it does not have, and a few thousand tokens have few of a vocabulary's.
        """
        if self._head is not None:
            found = variance()
            self._spread = found if self._spread is None else self._spread + found

    def hooks(self, names: Sequence[str]) -> Iterable[Any]:
        """Register the hooks that collect while the model runs forward and backward."""
        fused: dict[str, list[str]] = {}
        model = self.inputs.model
        for name in names:
            module, parameter = owner(model, name)
            if parameter is not None:
                fused.setdefault(module, []).append(parameter)
                continue
            yield model.get_submodule(module).register_forward_hook(self._linear(name))
        for module, parameters in fused.items():
            experts = model.get_submodule(module)
            collect = self._experts(module, experts, parameters)
            yield experts.register_forward_hook(collect, with_kwargs=True)

    def _moment(self, size: int, *, diagonal: bool = False) -> Any:
        kind = DiagonalMoment if diagonal or self.kind is OutputMoment.diagonal else Moment
        return kind(size, self.inputs.device)

    def _linear(self, name: str) -> Callable[..., None]:
        model = self.inputs.model
        dense = model.get_submodule(name)
        weight = matrix(model, name)
        tokens, scale = is_table(dense), embedding_scale(dense)
        size = weight.shape[1] if tokens else weight.shape[0]
        is_head = dense is model.get_output_embeddings()
        self.moments[name] = self._moment(size, diagonal=is_head)
        if is_head:
            self._head, self._spread = name, None

        def forward(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if output.requires_grad:
                # A linear's rows are those of its input: an encoder's, where cross-attention projects its output.
                mask = self.inputs.mask(name, output if tokens else args[0])
                # What an embedding multiplies its rows by is no part of its weight.
                output.register_hook(lambda found: self._add(name, found * scale if tokens else found, mask))

        return forward

    def _add(self, name: str, gradient: Tensor, mask: Tensor | None) -> None:
        moment: Any = self.moments[name]
        moment.add(gradient, mask)

    def _experts(self, name: str, experts: Any, parameters: Sequence[str]) -> Callable[..., None]:
        for parameter in parameters:
            count, out_features, _ = expert_matrices(experts, parameter).shape
            self.moments[f"{name}.{parameter}"] = [self._moment(out_features) for _ in range(count)]

        def forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            if output.requires_grad:
                hidden, index, weights = [*args, *kwargs.values()][:3]
                routed = _Routed(experts, hidden.detach(), index, weights.detach(), self.inputs.mask(name, hidden))
                output.register_hook(lambda gradient: self._add_experts(name, parameters, routed, gradient))

        return forward

    def _add_experts(self, name: str, parameters: Sequence[str], routed: "_Routed", gradient: Tensor) -> None:
        for expert in range(expert_matrices(routed.experts, "down_proj").shape[0]):
            found = routed.gradients(expert, gradient)
            for parameter in parameters:
                if found is not None:
                    moments: Any = self.moments[f"{name}.{parameter}"]
                    moments[expert].add(found[0 if parameter != "down_proj" else 1])


class _Routed:
    """The tokens of one call of fused experts, and which expert each went to with what weight."""

    def __init__(self, experts: Any, hidden: Tensor, index: Tensor, weights: Tensor, mask: Tensor | None) -> None:
        self.experts, self.hidden, self.index, self.weights, self.mask = experts, hidden, index, weights, mask

    def gradients(self, expert: int, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the gradients at the outputs of an expert's two matrices, [n, inner] and [n, d]; None for no token.

        The expert is run again on its tokens: fused experts show no outputs of single ones.
        """
        chosen = self.index == expert
        routed = chosen.any(-1) if self.mask is None else chosen.any(-1) & self.mask
        if not bool(routed.any()):
            return None
        experts = self.experts
        first = "gate_up_proj" if experts.has_gate else "up_proj"
        share = (self.weights * chosen).sum(-1)[routed, None]
        with torch.enable_grad():
            inner = self._projected(first, expert, self.hidden[routed]).requires_grad_()
            activated = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
            out = self._projected("down_proj", expert, activated)
            normed = experts.post_expert_norm(out) if getattr(experts, "has_post_expert_norm", False) else out
            weighted = normed * share.to(normed.dtype)
        at_inner, at_out = torch.autograd.grad(weighted, [inner, out], gradient[routed].to(weighted.dtype))
        return at_inner, at_out

    def _projected(self, name: str, expert: int, rows: Tensor) -> Tensor:
        out = rows @ expert_matrices(self.experts, name)[expert].T
        return out + getattr(self.experts, f"{name}_bias")[expert] if self.experts.has_bias else out
