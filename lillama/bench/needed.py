"""The floating-point operations that the method needs, by hand: nothing here looks at what the engine does.

For a Llama-like decoder this is exact. Others are counted with their matrices one behind the other, which is close
enough to say how the work grows with the number of blocks, and is told as such.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lillama.config import StudentInputs, Train
from lillama.model.targets import ModelShape, Target

# In which order a Llama-like block uses its matrices; attention comes after the first.
ORDER = (
    ("q_proj", "k_proj", "v_proj", "qkv_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj", "gate_up_proj"),
    ("down_proj",),
)
LEVELS = {name: level for level, names in enumerate(ORDER) for name in names}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that the work depends on, besides shapes and ranks.

    ``tokens`` of one batch; ``attention``: the operations of one block's attention over that batch, forward;
    ``active``: how many experts see a token.
    """

    tokens: int
    attention: int
    inputs: StudentInputs
    train: Train = Train.factors
    blockwise: bool = False
    active: int = 1


def llama_like(shape: ModelShape, ranks: Mapping[str, int]) -> bool:
    """Tell whether the operations are known exactly: every matrix of the blocks is a Llama's, and only those learn."""
    inside = [target for target in shape.every if 0 <= target.block < shape.blocks]
    own = {target.name for target in inside if _last(target) in LEVELS and target.copies == 1}
    return len(own) == len(inside) and own.issuperset(ranks)


def attention_flops(config: Any, *, sequences: int, length: int) -> int:
    """Return the two products of one block's attention over the whole square; 0 for a model without heads."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 4 * sequences * heads * length**2 * width


def needed_flops(shape: ModelShape, ranks: Mapping[str, int], settings: Settings) -> int:
    """Return the operations of one update of all blocks (Section 4).

    The teacher runs up to the last compressed block. A compressed block runs forward and backward for every feed; the
    first one sees the same from teacher and student, once. Blocks between compressed ones run once more for the
    student's stream. Blockwise, a block that has learnt runs once more to feed the next.
    """
    work = _Work(shape, ranks, settings)
    touched = sorted({target.block for target in shape.every if target.name in ranks})
    first, last = touched[0], touched[-1]
    own = settings.inputs is not StudentInputs.teacher
    total = sum(work.dense(index) for index in range(last + 1))
    for index in touched:
        feeds = 2 if settings.inputs is StudentInputs.teacher_student and index > first else 1
        total += feeds * (work.compressed(index) + work.backward(index))
        total += work.compressed(index) if settings.blockwise and own and index < last else 0
    between = (index for index in range(first, last) if index not in touched)
    return total + (sum(work.dense(index) for index in between) if own else 0)


@dataclass(frozen=True, slots=True)
class _Work:
    shape: ModelShape
    ranks: Mapping[str, int]
    settings: Settings

    def dense(self, index: int) -> int:
        """Return the teacher's block, forward."""
        return self.settings.attention + sum(self._product(t, *t.shape) for t in self._matrices(index))

    def compressed(self, index: int) -> int:
        """Return the student's block, forward."""
        return self.settings.attention + sum(self._forward(t) for t in self._matrices(index))

    def backward(self, index: int) -> int:
        """Gradients of what learns, and of inputs only where something below learns."""
        matrices = self._matrices(index)
        every = self.settings.train is Train.block
        learning = [self._level(t, place) for place, t in enumerate(matrices) if t.name in self.ranks]
        lowest = -1 if every else min(learning)
        total = sum(self._backward(t, below=self._level(t, place) > lowest) for place, t in enumerate(matrices))
        # Five products for the forward pass's two: fused kernels compute the scores anew.
        return total + (self.settings.attention * 5 // 2 if lowest < 1 else 0)

    def _backward(self, target: Target, *, below: bool) -> int:
        rank = self.ranks.get(target.name)
        if rank is None:
            dense = self._product(target, *target.shape)
            return dense * (below + (self.settings.train is Train.block))
        out_features, _ = target.shape
        inner = self._product(target, rank, target.multiplied(rank))
        return self._product(target, rank, out_features) * 2 + inner + below * inner

    def _forward(self, target: Target) -> int:
        rank = self.ranks.get(target.name)
        if rank is None:
            return self._product(target, *target.shape)
        return self._product(target, rank, target.shape[0] + target.multiplied(rank))

    def _product(self, target: Target, rows: int, columns: int) -> int:
        return 2 * self.settings.tokens * min(self.settings.active, target.copies) * rows * columns

    def _matrices(self, index: int) -> list[Target]:
        return [target for target in self.shape.every if target.block == index]

    def _level(self, target: Target, place: int) -> int:
        return LEVELS[_last(target)] if llama_like(self.shape, self.ranks) else place


def _last(target: Target) -> str:
    return target.name.rpartition(".")[2]


def names_of(shape: ModelShape, blocks: Iterable[int]) -> set[str]:
    """Return the matrices of these blocks."""
    wanted = set(blocks)
    return {target.name for target in shape.every if target.block in wanted}
