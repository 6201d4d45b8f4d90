"""Run a model once without its weights and see which modules it calls, and whether its blocks stand on their own.

A copy of fake tensors computes shapes only, so this takes no weights and some seconds at most, for any size.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lillama.core.errors import ConfigError
from lillama.model.blocks import Blocks
from lillama.model.calls import BlockCall, block_call, with_hidden
from lillama.model.inputs import Batch, model_inputs
from lillama.model.lowrank import is_fused_experts

log = logging.getLogger(__name__)
ROWS, LENGTH = 5, 4  # of the tokens that it runs on
_SEEN: dict[tuple[Any, ...], frozenset[str] | None] = {}  # by structure: a sweep asks for one model again and again


def called_modules(model: Any) -> frozenset[str] | None:
    """Name the modules that run in a forward pass; None where that depends on values, as unfused experts do.

    :raises ConfigError: where a block cannot be distilled on its own: one that runs twice, takes what another has
        computed beside the hidden states, or works on hidden states that are not [batch, tokens, ...].
    """
    key = _structure(model)
    if key not in _SEEN:
        _SEEN[key] = _called_modules(model)
    return _SEEN[key]


def _structure(model: Any) -> tuple[Any, ...]:
    """Key what decides which modules run: the class, its configuration, the modules and the shapes of their weights."""
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in model.named_parameters())
    return type(model), str(model.config), shapes, tuple(name for name, _ in model.named_modules())


def _called_modules(model: Any) -> frozenset[str] | None:
    try:
        inputs = model_inputs(model, _batch(model)).arguments
        with FakeTensorMode(allow_non_fake_inputs=True), _Zeros():
            twin = without_weights(model)
            watch = _Watch(Blocks(twin))
            watch.look_on()
            twin(**inputs)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an operation without values, or an unknown input, leads to
        log.debug("%s does not run without values: %r", type(model).__name__, error)
        return None
    watch.check_order()
    return frozenset(watch.called)


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a model's structure, with what it ties and without its hooks; its weights are fake, where that is on."""
    tensors: dict[int, Any] = {id(p): nn.Parameter(_empty(p), requires_grad=False) for p in model.parameters()}
    twin = copy.deepcopy(model, tensors | {id(b): _empty(b) for b in model.buffers()})
    for module in twin.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._forward_hooks_always_called):
            hooks.clear()
        for name, value in vars(module).items():
            if isinstance(value, Tensor):  # a table that is no buffer
                vars(module)[name] = _empty(value)
        if is_fused_experts(module):  # which expert a token goes to is a question of values
            module.forward = _same
    return twin.eval()


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _batch(model: Any) -> Batch:
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    if getattr(model, "main_input_name", "") != "input_features":
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool))
    config = model.config
    return Batch(ids, None, torch.zeros(ROWS, config.num_mel_bins, 2 * config.max_source_positions))


class _Zeros(TorchDispatchMode):
    """Takes a number that code asks a tensor of values for as zero: no token is padding, none has global attention.

    One that follows from sizes alone (Longformer counts its windows in tensors) is what it is.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if func is not torch.ops.aten._local_scalar_dense.default:
                raise
            return {torch.bool: False}.get(args[0].dtype, 0.0 if args[0].is_floating_point() else 0)


class _Watch:
    """Notes the calls of one pass. What depends on a stack's hidden states is told by autograd, which follows shapes
    as well as it follows values."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.called: set[str] = set()
        self.order: list[int] = []
        self._allowed: set[int] = set()  # tensors that the first block of the stack was given
        self._before: BlockCall | None = None
        self._held: list[Any] = []  # ids stay theirs as long as the objects live

    def look_on(self) -> None:
        """Register the hooks."""
        for name, module in self.blocks.model.named_modules():
            module.register_forward_pre_hook(self._noting(name))
        for index in range(len(self.blocks)):
            self.blocks[index].register_forward_pre_hook(self._entering(index), with_kwargs=True)
            self.blocks[index].register_forward_hook(self._leaving(index), with_kwargs=True)

    def check_order(self) -> None:
        """Raise where the blocks did not run once each, in their order."""
        if self.order == list(range(len(self.blocks))):
            return
        for index in range(len(self.blocks)):
            times = self.order.count(index)
            if times != 1:
                how = f"runs block {index} {times} times" if times else f"does not run block {index}"
                raise self._refusal(f"a pass {how}")
        raise self._refusal("a pass runs its blocks in another order")

    def _noting(self, name: str) -> Any:
        return lambda *_: self.called.add(name)

    def _entering(self, index: int) -> Any:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = block_call(index, args, kwargs)
            self.order.append(index)
            first = self._before is None or self.blocks.stack(self._before.index) != self.blocks.stack(index)
            tensors = list(_tensors([call.args, call.kwargs]))
            self._held.append(tensors)
            if first:
                self._allowed = {id(tensor) for tensor in tensors}
                return with_hidden(args, kwargs, call.hidden.detach().requires_grad_().clone())
            assert self._before is not None
            self._check(call, tensors, self._before)
            return None

        return enter

    def _leaving(self, index: int) -> Any:
        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            call = block_call(index, args, kwargs, output)
            shape = tuple(call.output.shape) if isinstance(call.output, Tensor) else ()
            if len(shape) < 3 or shape[0] != ROWS:
                raise self._refusal(f"block {index} gives hidden states {list(shape)}, not [batch, tokens, features]")
            self._before = call
            self._held.append(output)

        return leave

    def _check(self, call: BlockCall, tensors: list[Tensor], before: BlockCall) -> None:
        """Raise where a block takes more from the blocks below it than the last one's hidden states."""
        beside = {id(tensor) for tensor in _tensors(before.result) if not tensor.is_floating_point()}
        for tensor in tensors:
            if id(tensor) not in self._allowed and (tensor.requires_grad or id(tensor) in beside):
                name = _name_of(tensor, call)
                raise self._refusal(f"block {call.index} takes {name}, which lower blocks have computed")
        if call.hidden is not before.output:
            raise self._refusal(f"it changes the hidden states between blocks {before.index} and {call.index}")

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            f"model={type(self.blocks.model).__name__}: {why}; its blocks cannot be distilled one by one"
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _name_of(tensor: Tensor, call: BlockCall) -> str:
    """Name an argument as the block does."""
    named = (name for name, value in call.kwargs.items() if any(own is tensor for own in _tensors(value)))
    return next(named, "another argument")
