"""Which matrices of a model may be factorised: the weight of every linear inside its blocks."""

from dataclasses import dataclass

from torch import nn

from lillama.algebra.ranks import dense_parameters
from lillama.model.blocks import find_blocks


@dataclass(frozen=True, slots=True)
class Target:
    """One matrix: its module's full name, the index of its block, and its shape [out, in].

    ``copies`` is 1, or the number of experts that a fused parameter holds: they share one rank.
    """

    name: str
    block: int
    shape: tuple[int, int]
    copies: int = 1

    @property
    def parameters(self) -> int:
        """Parameters of the dense matrix, all copies together."""
        return self.copies * dense_parameters(self.shape)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """All that a plan needs to know of a model: its parameters and its target matrices, in module order."""

    parameters: int
    blocks: int
    targets: tuple[Target, ...]


def model_shape(model: nn.Module) -> ModelShape:
    """The shape of a model; a model on the meta device will do. Shared (tied) parameters count once."""
    prefix, blocks = find_blocks(model)
    targets = [target for index, block in enumerate(blocks) for target in _targets(f"{prefix}.{index}", index, block)]
    return ModelShape(sum(p.numel() for p in model.parameters()), len(blocks), tuple(targets))


def _targets(prefix: str, index: int, block: nn.Module) -> list[Target]:
    targets = []
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear):
            targets.append(Target(name, index, (module.out_features, module.in_features)))
        else:
            fused = [] if isinstance(module, nn.Conv1d) else _three_dimensional(module)
            targets += [Target(f"{name}.{n}", index, (p.shape[1], p.shape[2]), p.shape[0]) for n, p in fused]
    return targets


def _three_dimensional(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Fused experts: one parameter [experts, out, in]."""
    return [(name, p) for name, p in module.named_parameters(recurse=False) if p.dim() == 3]
