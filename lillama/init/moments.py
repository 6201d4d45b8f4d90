"""Second moments of the inputs of matrices, on calibration tokens, with the teacher as it is."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lillama.algebra.moments import MOMENT_BYTES, Moment, moment_bytes, within_limit
from lillama.core.errors import ConfigError
from lillama.data.calibration import Calibration
from lillama.model.blocks import Blocks
from lillama.model.inputs import ModelInputs, model_inputs
from lillama.model.lowrank import expert_matrices
from lillama.model.runs import run_blocks
from lillama.model.surgery import matrix, owner

log = logging.getLogger(__name__)
# Of a linear: E[x x^T] [in, in]. Of fused experts: one an expert, of the tokens that are routed to it. Of an embedding:
# how often each token occurs [V], the diagonal that is its second moment.
InputMoment = Moment | list[Moment] | Tensor


def moment_groups(model: nn.Module, names: Sequence[str], limit: int = MOMENT_BYTES) -> list[list[str]]:
    """The names in groups whose moments fit into ``limit`` bytes together: a pass over the tokens is made for each.

    A 7B model's moments for all its matrices would take 65 GB. One matrix is the least there is: where the moments of
    all its experts are larger than the limit, that is said.
    """
    sizes = {}
    for name in names:
        weight = matrix(model, name)
        sizes[name] = moment_bytes(weight.shape[-1]) * weight[..., 0, 0].numel()  # sharing makes it less
        if sizes[name] > limit:
            log.warning("the moments of %s alone take %.1f GB", name, sizes[name] / 1e9)
    return within_limit(sizes, limit)


def input_moments(
    model: nn.Module, names: Sequence[str], data: Calibration, *, batch_size: int = 4, progress: bool = False
) -> dict[str, InputMoment]:
    """Return the moments of the named matrices' inputs; linears that share an input share a moment.

    Padding does not count. Nothing above the last block that holds one of the matrices is run.
    """
    blocks = Blocks(model)
    collector = InputCollector(blocks)
    hooks = list(collector.hooks(names))
    device = next(model.parameters()).device
    indices = [blocks.index_of(name) for name in names]
    wanted = range(min(indices), max(indices) + 1)
    try:
        with tqdm(total=data.tokens, desc="moments", unit="tok", disable=not progress) as bar:
            for batch in data.batches(batch_size, device):
                collector.inputs = model_inputs(model, batch)
                collector.latest = None
                run_blocks(blocks, collector.inputs.arguments, wanted=wanted, on_block=lambda call: None)
                bar.update(batch.tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: collector.of(name) for name in names}


class InputCollector:
    """Adds each distinct input once a call: query, key and value projections see the same tensor."""

    def __init__(self, blocks: Blocks) -> None:
        self.model = blocks.model
        self.blocks = blocks
        self.device = next(blocks.model.parameters()).device
        self.moments: dict[str, InputMoment] = {}
        self.inputs: ModelInputs
        self.latest: tuple[Tensor, Moment] | None = None
        self.memory: Tensor | None = None  # an encoder's output, which a decoder's cross-attention projects

    def hooks(self, names: Sequence[str]) -> Iterable[Any]:
        """Yield the hooks that collect while the model runs."""
        fused: dict[str, list[str]] = {}
        for name in names:
            module, parameter = owner(self.model, name)
            if parameter is not None:
                fused.setdefault(module, []).append(parameter)
                continue
            dense = self.model.get_submodule(module)
            collect = self._tokens(name, dense) if isinstance(dense, nn.Embedding) else self._linear(name)
            yield dense.register_forward_pre_hook(collect)
        for module, parameters in fused.items():
            experts = self.model.get_submodule(module)
            yield experts.register_forward_pre_hook(self._experts(module, experts, parameters), with_kwargs=True)
        if len(self.blocks.stacks) > 1:
            yield self.model.get_encoder().register_forward_hook(self._remember)

    def of(self, name: str) -> InputMoment:
        """The moments of a matrix; empty ones where no token has reached it (an expert that is a module of its own)."""
        if name not in self.moments:
            log.warning("no calibration token reached %s; it starts from its weights alone", name)
            self.moments[name] = Moment(matrix(self.model, name).shape[-1], self.device)
        return self.moments[name]

    def _remember(self, _: nn.Module, args: Any, output: Any) -> None:
        self.memory = output[0]

    def mask(self, name: str, x: Tensor) -> Tensor | None:
        """Mark the rows of an input that count, in its own shape without the last dimension."""
        stack = self.blocks.stack(self.blocks.index_of(name))
        mask = self.inputs.mask(0 if x is self.memory else stack)
        if mask is not None and mask.numel() != x[..., 0].numel():
            why = "its rows are not its batch's tokens, so padding cannot be told"
            raise ConfigError(f"{name}: {why}; use data without padding, or init=svd and a strategy without moments")
        return None if mask is None else mask.reshape(x.shape[:-1])

    def _linear(self, name: str) -> Callable[..., None]:
        def collect(_: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if self.latest is not None and self.latest[0] is x:
                self.moments.setdefault(name, self.latest[1])
                return
            moment: Any = self.moments.setdefault(name, Moment(x.shape[-1], x.device))
            moment.add(x, self.mask(name, x))
            self.latest = (x, moment)

        return collect

    def _tokens(self, name: str, dense: nn.Embedding) -> Callable[..., None]:
        self.moments[name] = torch.zeros(dense.num_embeddings, dtype=torch.long, device=self.device)

        def collect(_: nn.Module, args: tuple[Any, ...]) -> None:
            mask = self.inputs.mask(None)
            ids = args[0] if mask is None else args[0][mask]
            self.moments[name] += ids.flatten().bincount(minlength=dense.num_embeddings)

        return collect

    def _experts(self, name: str, experts: Any, parameters: Sequence[str]) -> Callable[..., None]:
        for parameter in parameters:
            count, _, size = expert_matrices(experts, parameter).shape
            self.moments[f"{name}.{parameter}"] = [Moment(size, self.device) for _ in range(count)]

        @torch.no_grad()
        def collect(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, index, *_rest = [*args, *kwargs.values()]
            mask = self.mask(name, hidden)
            for expert in range(expert_matrices(experts, "down_proj").shape[0]):
                routed = (index == expert).any(-1)
                rows = hidden[routed if mask is None else routed & mask]
                if len(rows):
                    self._add_expert(name, experts, parameters, expert, rows)

        return collect

    def _add_expert(self, name: str, experts: Any, parameters: Sequence[str], expert: int, rows: Tensor) -> None:
        first = "gate_up_proj" if experts.has_gate else "up_proj"
        for parameter, x in ((first, rows), ("down_proj", None)):
            if parameter in parameters:
                moments: Any = self.moments[f"{name}.{parameter}"]
                moments[expert].add(_inner(experts, first, expert, rows) if x is None else x)


def _inner(experts: Any, first: str, expert: int, rows: Tensor) -> Tensor:
    """Compute the inputs of an expert's second matrix [n, intermediate]."""
    up = rows @ expert_matrices(experts, first)[expert].T
    if experts.has_bias:
        up = up + getattr(experts, f"{first}_bias")[expert]
    return experts._apply_gate(up) if experts.has_gate else experts.act_fn(up)
