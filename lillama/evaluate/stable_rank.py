"""Stable rank of a model's matrices and of what they put out, streamed over a text (the paper's Figure 6)."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from lillama.algebra.moments import MOMENT_BYTES, Moment, moment_bytes, within_limit
from lillama.algebra.stable_rank import centred, of_moment, stable_rank
from lillama.config import StableRankConfig
from lillama.core.errors import ConfigError, DivergedError
from lillama.core.outputs import STABLE_RANK_CHART
from lillama.evaluate.measure import Figures, Given, Measure
from lillama.evaluate.perplexity import MeasuredText
from lillama.model.blocks import Blocks
from lillama.model.calls import hidden_states
from lillama.model.inputs import Batch, model_inputs
from lillama.model.limits import check_length
from lillama.model.lowrank import LowRankExperts, LowRankLinear, expert_matrices, is_fused_experts
from lillama.model.offload import at_work
from lillama.model.runs import run_blocks

KEY = "evaluate.stable_rank"
BLOCK = "layer_activation"  # as Figure 6 names a block's output
WEIGHT, OUTPUTS, CENTRED = "weight", "outputs", "outputs_centred"
LEGEND = {WEIGHT: "weight", OUTPUTS: "outputs", CENTRED: "outputs, centred"}
Ranks = dict[str, dict[str, float | None]]  # by name: of the weight, of the outputs, of the outputs without their mean


@dataclass(frozen=True, slots=True)
class StableRanks(Measure):
    """``stages=[stable_rank]``: on the first tokens of the perplexity's text."""

    config: StableRankConfig
    text: MeasuredText
    progress: bool

    CHART: ClassVar[str] = STABLE_RANK_CHART

    @classmethod
    def read(cls, given: Given) -> "StableRanks":
        """Read the text, and compare the sequences' length with the model."""
        config = given.config.stable_rank
        check_length(f"{KEY}.seq_len", config.seq_len, given.limits.text)
        return cls(config, given.text(), given.progress)

    def measure(self, model: nn.Module, *, dense: Figures | None, note: Callable[[Figures], None]) -> Figures:
        """Measure the stable ranks of the model's matrices and of their outputs."""
        return stable_ranks(model, self.text.ids, self.config, progress=self.progress)

    def draw(self, measured: Mapping[str, Figures], file: Path, *, title: str) -> None:
        """Draw the means as bars."""
        draw_stable_ranks(measured, file, title=title)


def stable_ranks(model: Any, ids: Tensor, config: StableRankConfig, *, progress: bool = False) -> dict[str, Any]:
    """Return the stable ranks of every linear of the blocks, dense or low-rank, of its own outputs, and of the blocks'.

    Of fused experts it is the mean over the experts, and there are no outputs (each sees tokens of its own). Outputs
    are those of the first whole sequences of the text, of which no more than ``config.tokens`` tokens are read; no
    stable rank of theirs can be above ``tokens``.

    :param ids: token ids [n].
    :return: ``tokens``, ``ranks`` by name, and ``mean`` over the blocks by kind of matrix, as Figure 6 has it.
    :raises ConfigError: for a text without one whole sequence.
    :raises DivergedError: for weights or outputs that are not finite.
    """
    count = min(config.tokens, len(ids)) // config.seq_len
    if not count:
        wanted = f"the text has {len(ids):,} tokens of {config.tokens:,}, which is no whole sequence"
        raise ConfigError(f"{KEY}.seq_len={config.seq_len}: {wanted}")
    sequences = ids[: count * config.seq_len].view(count, config.seq_len)
    blocks = Blocks(model)
    found = _weights(blocks, progress=progress)
    places = {blocks.name(index): index for index in range(len(blocks))}
    found |= {name: {WEIGHT: None} for name in places}
    _add_outputs(blocks, found, sequences.split(config.batch_size), progress=progress)
    kinds: dict[str, list[dict[str, float | None]]] = {}
    for name, ranks in found.items():
        kinds.setdefault(_kind(blocks, name), []).append(ranks)
    return {
        "tokens": count * config.seq_len,
        "ranks": found,
        "mean": {kind: _mean(ranks) for kind, ranks in kinds.items()},
    }


def _weights(blocks: Blocks, *, progress: bool) -> Ranks:
    """Return the stable rank of every matrix, by its module's name (of fused experts, with the parameter's)."""
    found: Ranks = {}
    for index in tqdm(range(len(blocks)), desc="stable rank", unit="block", leave=False, disable=not progress):
        with at_work(blocks[index]):
            for name, matrices in _matrices(blocks[index], blocks.name(index)):
                if not all(bool(matrix.isfinite().all()) for matrix in matrices):
                    raise DivergedError(f"stable_rank: the weights of {name} are not finite")
                found[name] = {WEIGHT: fmean(map(stable_rank, matrices))}
    return found


def _matrices(block: nn.Module, prefix: str) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Yield the matrices of a block by name: one, or one an expert; a low-rank one is multiplied out."""
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, LowRankLinear):
            yield name, [module.multiplied_out(torch.double)]
        elif isinstance(module, nn.Linear | Conv1D) and not isinstance(_parent(block, prefix, name), LowRankLinear):
            yield name, [module.weight]
        elif isinstance(module, LowRankExperts):
            pairs: Any = module.lowrank
            yield from ((f"{name}.{key}", list(pair.multiplied_out(torch.double))) for key, pair in pairs.items())
        if is_fused_experts(module):
            for key, value in module.named_parameters(recurse=False):
                if value.dim() == 3:
                    yield f"{name}.{key}", list(expert_matrices(module, key))


def _parent(block: nn.Module, prefix: str, name: str) -> nn.Module:
    return block.get_submodule(name.removeprefix(prefix).strip(".").rpartition(".")[0])


def _add_outputs(blocks: Blocks, found: Ranks, batches: Sequence[Tensor], *, progress: bool) -> None:
    """Collect the outputs, in as many passes over the text as their moments need."""
    sizes: dict[str, int] = {}
    _observe(blocks, found, batches[0][:1], lambda name, x: sizes.update({name: moment_bytes(x.shape[-1])}))
    groups = within_limit(sizes, MOMENT_BYTES)
    total = len(groups) * sum(batch.numel() for batch in batches)
    with tqdm(total=total, desc="stable rank", unit="tok", leave=False, disable=not progress) as bar:
        for group in groups:
            moments: dict[str, Moment] = {}
            for batch in batches:
                _observe(blocks, group, batch, partial(_collect, moments))
                bar.update(batch.numel())
            for name in group:
                found[name] |= _of_outputs(moments.pop(name))
    for ranks in found.values():
        ranks.setdefault(OUTPUTS, None)
        ranks.setdefault(CENTRED, None)


def _observe(blocks: Blocks, names: Collection[str], ids: Tensor, see: Callable[[str, Tensor], None]) -> None:
    """Run a batch [b, t] through all blocks; ``see`` is told what the named modules that are called put out."""

    def tell(name: str) -> Callable[..., None]:
        return lambda module, args, output: see(name, hidden_states(output))

    modules = {name: module for name, module in blocks.model.named_modules() if name in names}
    hooks = [module.register_forward_hook(tell(name)) for name, module in modules.items()]
    inputs = model_inputs(blocks.model, Batch(ids.to(next(blocks.model.parameters()).device)))
    try:
        run_blocks(blocks, inputs.arguments, wanted=[len(blocks) - 1], on_block=lambda call: None)
    finally:
        for hook in hooks:
            hook.remove()


def _collect(moments: dict[str, Moment], name: str, output: Tensor) -> None:
    if not bool(output.isfinite().all()):
        raise DivergedError(f"stable_rank: what {name} puts out is not finite")
    if name not in moments:
        moments[name] = Moment(output.shape[-1], output.device)
    moments[name].add(output)


def _of_outputs(moment: Moment) -> dict[str, float | None]:
    return {OUTPUTS: of_moment(moment.value), CENTRED: of_moment(centred(moment.value, moment.mean))}


def _kind(blocks: Blocks, name: str) -> str:
    """Name a matrix as it is called in every block: the name after the block's; of two stacks, with that of its own."""
    index = blocks.index_of(name)
    kind = name.removeprefix(blocks.name(index)).removeprefix(".") or BLOCK
    place = blocks.stack(index)
    return kind if len(blocks.stacks) == 1 or place is None else f"{blocks.stacks[place].name}.{kind}"


def _mean(ranks: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    known = {key: [value for own in ranks if (value := own[key]) is not None] for key in LEGEND}
    return {key: fmean(values) if values else None for key, values in known.items()}


def draw_stable_ranks(measured: Mapping[str, Mapping[str, Any]], file: Path, *, title: str) -> None:
    """The means as bars: a panel a model, a group a kind of matrix, on a scale that both share.

    :param measured: by role, what :func:`stable_ranks` gives.
    """
    from matplotlib.figure import Figure

    longest = max(len(found["mean"]) for found in measured.values())
    figure = Figure(figsize=(1.5 + 1.1 * longest, 1 + 3.2 * len(measured)), layout="constrained")
    panels = figure.subplots(len(measured), 1, sharey=True, squeeze=False)[:, 0]
    for axes, (role, found) in zip(panels, measured.items(), strict=True):
        _bars(axes, found["mean"])
        axes.set(yscale="log", ylabel="stable rank", title=f"{role}, {found['tokens']:,} tokens")
        axes.grid(visible=True, axis="y", alpha=0.3)
    panels[0].legend(ncols=len(LEGEND))
    figure.suptitle(title)
    figure.savefig(file, dpi=120)


def _bars(axes: Any, mean: Mapping[str, Mapping[str, float | None]]) -> None:
    width = 0.8 / len(LEGEND)
    for number, (key, label) in enumerate(LEGEND.items()):
        known = [(place, own[key]) for place, own in enumerate(mean.values()) if own[key] is not None]
        places, values = zip(*known, strict=True) if known else ((), ())
        axes.bar([place + (number - 1) * width for place in places], values, width, label=label)
    axes.set_xticks(range(len(mean)), [kind.replace(".", "\n") for kind in mean])
