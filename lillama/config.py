"""Every configuration schema, registered with Hydra's ConfigStore.

The YAML files under ``conf/`` name one of these schemas each, so an unknown key, a wrong type or an illegal enum
value fails while the configuration is composed. Ranges are checked in ``__post_init__``, which OmegaConf calls
when ``run.py`` turns the composed configuration into these dataclasses.
"""

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from lillama.errors import ConfigError, require

POSITIVE = "must be a positive integer"
LARGEST_TOKEN_BUDGET = 10**12


class Stage(Enum):
    """What a run does, in this order."""

    plan = "plan"
    init = "init"
    distill = "distill"
    perplexity = "perplexity"
    bench = "bench"  # what the engine costs; not one of the stages that make a model


class Weights(Enum):
    """Where the weights come from."""

    pretrained = "pretrained"
    random = "random"


class Task(Enum):
    """What a model does, and so which of transformers' classes it is; ``auto`` reads it from the configuration."""

    auto = "auto"
    causal_lm = "causal_lm"
    seq2seq_lm = "seq2seq_lm"  # encoder-decoders for text
    speech_seq2seq = "speech_seq2seq"
    masked_lm = "masked_lm"  # BERT-like encoders


class Scope(Enum):
    """Which side of an encoder-decoder is compressed."""

    all = "all"
    encoder = "encoder"
    decoder = "decoder"


class Dtype(Enum):
    """The numbers that the model computes in; ``auto`` is bfloat16 on a GPU and float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Rounding(Enum):
    """What ``uniform`` takes the fraction of."""

    parameters = "parameters"  # the model shrinks by the asked amount
    rank = "rank"  # the authors' code: a fraction of the largest rank that saves; the model shrinks by less


class Inputs(Enum):
    """Whose activations a student block is fed with while it learns."""

    teacher = "teacher"  # Eq. 8
    student = "student"  # Eq. 9
    teacher_student = "teacher_student"  # Eq. 10


class Distance(Enum):
    """How far a student's output is from the teacher's."""

    l1_cosine = "l1_cosine"  # Eq. 7
    mse = "mse"
    normalized_mse = "normalized_mse"


class Reduction(Enum):
    """How the distances of a batch's tokens become one number."""

    mean = "mean"
    sum = "sum"


class Split(Enum):
    """Which factor carries the singular values."""

    us_v = "us_v"  # Eq. 2
    symmetric = "symmetric"  # the authors' code


class Source(Enum):
    """Where text comes from."""

    hub = "hub"
    local = "local"
    stdlib_docs = "stdlib_docs"
    speech = "speech"  # a folder of sound files with their transcripts


class Packing(Enum):
    """How rows become blocks of ``seq_len`` tokens."""

    packed = "packed"  # rows follow each other, nothing is padded but the very last block
    padded = "padded"  # one row a block, cut at seq_len, the rest padded and masked


class Order(Enum):
    """In which order rows are taken."""

    shuffled = "shuffled"
    longest_first = "longest_first"
    given = "given"


class Template(Enum):
    """How instruction and conversation rows become text."""

    auto = "auto"  # the tokenizer's chat template, where it has one
    none = "none"  # turns joined by blank lines


class SystemTurns(Enum):
    """What happens to the system turns of conversations."""

    keep = "keep"
    drop = "drop"


class Join(Enum):
    """What stands between two rows of a packed stream."""

    auto = "auto"  # blank_line for plain text, nothing after a chat template, eos otherwise
    eos = "eos"
    blank_line = "blank_line"
    none = "none"


class Train(Enum):
    """Which parameters of a compressed block learn."""

    factors = "factors"
    block = "block"


class LearningRate(Enum):
    """The shape of the learning rate over a run."""

    constant = "constant"
    cosine = "cosine"


class Moments(Enum):
    """The numbers that AdamW keeps its two moments in."""

    float32 = "float32"  # those of the weights that learn: narrower where distill.master_weights is off
    int8 = "int8"  # torchao's AdamW8bit


class OutOfMemory(Enum):
    """What happens when the device has no memory left for a step."""

    stop = "stop"  # with a line that says which setting to lower
    halve = "halve"  # half as many sequences at a time, from there on


class Place(Enum):
    """Where the blockwise schedule keeps the hidden states between two blocks."""

    memory = "memory"  # the host's
    disk = "disk"  # memory-mapped files in the run's folder


class Parallel(Enum):
    """What the processes of a torchrun share out; a single process does everything itself."""

    data = "data"  # each its part of every batch; gradients are averaged
    blocks = "blocks"  # each its part of the model; activations are passed on


class Keep(Enum):
    """Which weights of a block are kept."""

    last = "last"
    lowest_batch = "lowest_batch"  # the authors' code: those before the step with the lowest single-batch loss


class LoggerKind(Enum):
    """Where metrics go while a run is under way."""

    none = "none"
    csv = "csv"
    wandb = "wandb"


@dataclass(kw_only=True, slots=True)
class TargetsConfig:
    """Which matrices may be replaced, by shell patterns: a module's name, or what comes after one of its dots.

    ``include`` null is every linear and fused expert of the blocks but routers; the input embedding and the prediction
    head, or a router, are replaced where a pattern names them. What ``exclude`` matches stays dense.
    """

    include: list[str] | None = None
    exclude: list[str] | None = None


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The teacher: a Hub id, a local folder, a GGUF file, or ``package://<package>/<file>`` in a Python package.

    With ``offload`` the blocks stay in host memory, mapped from their files, and each is on the device, in the dtype of
    the run, only while it is needed.
    """

    name: str = MISSING
    path: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    task: Task = Task.auto
    weights: Weights = Weights.pretrained
    architecture: dict[str, Any] = field(default_factory=dict)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    dtype: Dtype = Dtype.auto
    device: str = "auto"
    offload: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        require(
            self.path is not None or bool(self.architecture),
            "model.path",
            self.path,
            "give a Hub id, a local folder or a GGUF file, or an architecture with model.weights=random",
        )
        require(
            self.weights is Weights.random or self.path is not None,
            "model.weights",
            self.weights.name,
            "pretrained weights need model.path; the other choice is random",
        )
        known = self.device in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d+", self.device) is not None
        require(known, "model.device", self.device, "must be auto, cpu, cuda or cuda:N")


@dataclass(kw_only=True, slots=True)
class StrategyConfig:
    """How small the model becomes: a reduction, or a parameter count (which wins where both are given)."""

    reduction: float = 0.2
    parameters: str | None = None
    scope: Scope = Scope.all

    def __post_init__(self) -> None:
        require(0 < self.reduction < 1, "strategy.reduction", self.reduction, "must lie between 0 and 1, exclusive")


@dataclass(kw_only=True, slots=True)
class BottomConfig(StrategyConfig):
    """Algorithm 1: the lowest layers first, with candidate ranks k, k + m, k + 2m, ..."""

    k: int = 1024
    m: int = 256

    def __post_init__(self) -> None:
        # Not super(): slots=True makes a new class, and the zero-argument form still holds the old one.
        StrategyConfig.__post_init__(self)
        require(self.k > 0, "strategy.k", self.k, POSITIVE)
        require(self.m > 0, "strategy.m", self.m, POSITIVE)


@dataclass(kw_only=True, slots=True)
class TopConfig(BottomConfig):
    """Algorithm 1 with the layers in reverse."""


@dataclass(kw_only=True, slots=True)
class UniformConfig(StrategyConfig):
    """The same fraction of every matrix; no rank is below ``k``, and ranks are multiples of ``round_to``."""

    k: int = 1
    round_to: int = 1
    fraction_of: Rounding = Rounding.parameters

    def __post_init__(self) -> None:
        StrategyConfig.__post_init__(self)
        require(self.k > 0, "strategy.k", self.k, POSITIVE)
        require(self.round_to > 0, "strategy.round_to", self.round_to, POSITIVE)


@dataclass(kw_only=True, slots=True)
class RankConfig(StrategyConfig):
    """The same rank for every matrix that it makes smaller; the reduction is what that comes to."""

    rank: int = 1024

    def __post_init__(self) -> None:
        StrategyConfig.__post_init__(self)
        require(self.rank > 0, "strategy.rank", self.rank, POSITIVE)


@dataclass(kw_only=True, slots=True)
class PlanFileConfig(StrategyConfig):
    """Replays the ranks of a saved ``plan.json``."""

    file: str = MISSING


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """What a student block is fed with and how its output is compared."""

    inputs: Inputs = MISSING
    distance: Distance = Distance.l1_cosine
    reduction: Reduction = Reduction.mean


@dataclass(kw_only=True, slots=True)
class InitConfig:
    """Where the factors start; ``keep_bias=false`` drops the biases of replaced matrices, as the authors' code does."""

    keep_bias: bool = True


@dataclass(kw_only=True, slots=True)
class SvdConfig(InitConfig):
    """The best rank-r matrix in the Frobenius norm (Eq. 2)."""

    split: Split = Split.us_v


@dataclass(kw_only=True, slots=True)
class RandomConfig(InitConfig):
    """Normal factors with standard deviation sqrt(1 / in_features) (Figure 5)."""

    seed: int = 0


@dataclass(kw_only=True, slots=True)
class FeatureConfig(InitConfig):
    """The best rank-r map for the outputs on calibration tokens (Eq. 3)."""

    tokens: int = 16384
    floor: float = 1e-7

    def __post_init__(self) -> None:
        require(self.tokens > 0, "init.tokens", self.tokens, POSITIVE)
        require(0 < self.floor < 1, "init.floor", self.floor, "must lie between 0 and 1, exclusive")


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """A text: a Hub dataset (``path`` is its id), a local file or folder, or the topics that ship with CPython."""

    source: Source = MISSING
    path: str | None = None
    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    def check(self, key: str) -> None:
        """Raise where the source needs a path and has none."""
        needed = self.source is not Source.stdlib_docs
        require(self.path is not None or not needed, f"{key}.path", self.path, f"{self.source.name} text needs a path")


@dataclass(kw_only=True, slots=True)
class DataConfig(TextConfig):
    """Calibration text and how it becomes blocks of tokens."""

    tokens: int = 65536
    seq_len: int = 512
    packing: Packing = Packing.packed
    order: Order = Order.shuffled
    template: Template = Template.auto
    system: SystemTurns = SystemTurns.keep
    join: Join = Join.auto
    seed: int = 0

    def __post_init__(self) -> None:
        TextConfig.check(self, "data")
        legal = f"must lie between 1 and {LARGEST_TOKEN_BUDGET:,}"
        require(0 < self.tokens <= LARGEST_TOKEN_BUDGET, "data.tokens", self.tokens, legal)
        require(self.seq_len > 1, "data.seq_len", self.seq_len, "must be at least 2")


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """In which order blocks learn; by itself, all at once from one stream of tokens (Section 4)."""


@dataclass(kw_only=True, slots=True)
class BlockwiseConfig(ScheduleConfig):
    """A block to its end, then the next one, which sees what the compressed model then feeds it with.

    ``heldout`` is the share of the sequences that no block learns from; after every pass over the others their loss is
    taken, and a block stops once it has not fallen for ``patience`` passes (0: never) and keeps its best weights.
    """

    place: Place = Place.memory
    heldout: float = 0.0
    patience: int = 0

    def __post_init__(self) -> None:
        require(0 <= self.heldout < 1, "distill.schedule.heldout", self.heldout, "a share, from 0 to below 1")
        patience = self.patience
        require(patience >= 0, "distill.schedule.patience", patience, "must not be negative")
        needed = patience == 0 or self.heldout > 0
        require(needed, "distill.schedule.patience", patience, "needs distill.schedule.heldout above 0")


@dataclass(kw_only=True, slots=True)
class DistillConfig:
    """The local updates: one AdamW for each compressed block.

    ``batch_size`` sequences make one update; ``micro_batch`` of them are on the device at a time (null: all).
    ``merge`` feeds a block with the teacher's and the student's inputs in one call.
    """

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch_size: int = 8
    micro_batch: int | None = None
    on_oom: OutOfMemory = OutOfMemory.stop
    merge: bool = True
    compile: bool = False
    epochs: int = 1
    lr: float = 8.6e-4
    lr_schedule: LearningRate = LearningRate.constant
    warmup: float = 0.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    moments: Moments = Moments.float32
    clip_norm: float | None = None
    train: Train = Train.factors
    master_weights: bool = True
    dropout: bool = False
    mask_padding: bool = True
    keep: Keep = Keep.last

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "distill.batch_size", self.batch_size, POSITIVE)
        micro = self.micro_batch
        require(micro is None or micro > 0, "distill.micro_batch", micro, "must be a positive integer, or null for all")
        require(self.epochs > 0, "distill.epochs", self.epochs, POSITIVE)
        require(0 < self.lr < math.inf, "distill.lr", self.lr, "must be positive and finite")
        require(0 <= self.warmup < 1, "distill.warmup", self.warmup, "a fraction of the steps, from 0 to below 1")
        decay = self.weight_decay
        require(0 <= decay < math.inf, "distill.weight_decay", decay, "must be finite and not negative")
        clip = self.clip_norm
        require(
            clip is None or 0 < clip < math.inf, "distill.clip_norm", clip, "must be positive, or null for no clipping"
        )
        blockwise = isinstance(self.schedule, BlockwiseConfig)
        if blockwise and self.on_oom is OutOfMemory.halve:
            raise ConfigError("distill.on_oom=halve: the blockwise schedule keeps its parts; set distill.micro_batch")
        if blockwise and self.dropout:
            raise ConfigError("distill.dropout=true: a block's inputs are computed once; use distill/schedule=joint")
        held = isinstance(self.schedule, BlockwiseConfig) and self.schedule.heldout > 0
        kept = not held or self.keep is Keep.last
        require(kept, "distill.keep", self.keep.name, "the held-out loss says what is kept; use last")
        legal = "two numbers from 0 to below 1"
        require(all(0 <= beta < 1 for beta in self.betas), "distill.betas", self.betas, legal)


@dataclass(kw_only=True, slots=True)
class PerplexityConfig(TextConfig):
    """The text of the curve, in non-overlapping windows; ``max_tokens`` cuts it, null takes the whole."""

    seq_len: int = 2048
    max_tokens: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        TextConfig.check(self, "evaluate.perplexity")
        require(self.seq_len > 1, "evaluate.perplexity.seq_len", self.seq_len, "must be at least 2")
        cut = self.max_tokens
        require(cut is None or cut > 1, "evaluate.perplexity.max_tokens", cut, "must be at least 2, or null for all")
        require(self.batch_size > 0, "evaluate.perplexity.batch_size", self.batch_size, POSITIVE)


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """What is measured; ``every_tokens=0`` measures at the start and at the end only."""

    every_tokens: int = 0
    perplexity: PerplexityConfig = MISSING

    def __post_init__(self) -> None:
        require(self.every_tokens >= 0, "evaluate.every_tokens", self.every_tokens, "must not be negative")


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """What the stage ``bench`` measures of a distillation with this configuration; its batch is ``distill``'s.

    ``rounds`` are counted after ``warmup`` others, as far as ``seconds`` reach (the first is always made). ``blocks``
    is how many of the plan's blocks learn, lowest first (null: all). ``literal`` measures the paper's method written
    down literally beside the engine, and needs the whole model; without it a random model ends with its last
    block that learns. ``project_tokens`` is the budget whose time is projected.
    """

    rounds: int = 5
    warmup: int = 1
    seconds: float = 600.0
    blocks: int | None = None
    literal: bool = True
    project_tokens: int = 13_000_000

    def __post_init__(self) -> None:
        require(self.rounds > 0, "bench.rounds", self.rounds, POSITIVE)
        require(self.warmup >= 0, "bench.warmup", self.warmup, "must not be negative")
        require(0 < self.seconds < math.inf, "bench.seconds", self.seconds, "must be positive and finite")
        blocks = self.blocks
        require(blocks is None or blocks > 0, "bench.blocks", blocks, "must be a positive integer, or null for all")
        require(self.project_tokens > 0, "bench.project_tokens", self.project_tokens, POSITIVE)


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Where metrics go; ``mode`` null is offline where no W&B key is set."""

    kind: LoggerKind = MISSING
    project: str = "lillama"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str | None = None

    def __post_init__(self) -> None:
        legal = "must be online, offline, disabled, or null"
        require(self.mode in (None, "online", "offline", "disabled"), "logger.mode", self.mode, legal)


@dataclass(kw_only=True, slots=True)
class SnapshotConfig:
    """How often a distillation is saved so that the same command goes on with it; null: not by this measure.

    ``keep`` is how many snapshots stay: a damaged one falls back to the one before.
    """

    every_minutes: float | None = 5.0
    every_steps: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        minutes, steps = self.every_minutes, self.every_steps
        legal = "must be positive, or null"
        require(minutes is None or 0 < minutes < math.inf, "snapshot.every_minutes", minutes, legal)
        require(steps is None or steps > 0, "snapshot.every_steps", steps, legal)
        require(self.keep > 0, "snapshot.keep", self.keep, POSITIVE)

    @property
    def off(self) -> bool:
        """Whether none are made."""
        return self.every_minutes is None and self.every_steps is None


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One run, whole."""

    name: str = "run"
    stages: list[Stage] = field(default_factory=lambda: [stage for stage in Stage if stage is not Stage.bench])
    seed: int = 0
    cache_dir: str = MISSING
    cache_limit_gb: float = 20.0
    progress: bool = True
    save_checkpoint: bool = True
    model: ModelConfig = MISSING
    strategy: StrategyConfig = MISSING
    loss: LossConfig = MISSING
    init: InitConfig = MISSING
    data: DataConfig = MISSING
    distill: DistillConfig = MISSING
    evaluate: EvaluateConfig = MISSING
    logger: LoggerConfig = MISSING
    bench: BenchConfig = field(default_factory=BenchConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    parallel: Parallel = Parallel.data

    def __post_init__(self) -> None:
        limit = self.cache_limit_gb
        require(0 < limit < math.inf, "cache_limit_gb", limit, "must be positive and finite (gigabytes)")
        require(bool(self.stages), "stages", [], f"give at least one of {[stage.name for stage in Stage]}")
        if Stage.distill in self.stages and Stage.init not in self.stages:
            raise ConfigError(f"stages={[s.name for s in self.stages]}: distill needs init before it")
        if self.parallel is Parallel.blocks and isinstance(self.distill.schedule, BlockwiseConfig):
            raise ConfigError("parallel=blocks: a blockwise schedule has one block at work; use parallel=data")
        if self.parallel is Parallel.blocks and self.distill.on_oom is OutOfMemory.halve:
            raise ConfigError("distill.on_oom=halve: processes that share blocks share parts; set distill.micro_batch")


SCHEMAS: dict[str | None, dict[str, type]] = {
    None: {"run_schema": RunConfig},
    "model": {"model_schema": ModelConfig},
    "strategy": {
        "bottom_schema": BottomConfig,
        "top_schema": TopConfig,
        "uniform_schema": UniformConfig,
        "rank_schema": RankConfig,
        "plan_schema": PlanFileConfig,
    },
    "loss": {"loss_schema": LossConfig},
    "init": {"svd_schema": SvdConfig, "random_schema": RandomConfig, "feature_schema": FeatureConfig},
    "data": {"data_schema": DataConfig},
    "distill": {"distill_schema": DistillConfig},
    "distill/schedule": {"joint_schema": ScheduleConfig, "blockwise_schema": BlockwiseConfig},
    "evaluate": {"evaluate_schema": EvaluateConfig},
    "evaluate/perplexity": {"perplexity_schema": PerplexityConfig},
    "logger": {"logger_schema": LoggerConfig},
    "bench": {"bench_schema": BenchConfig},
}


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values, enums by name: for YAML, JSON and hashes."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def register_schemas() -> None:
    """Make the schemas known to Hydra; ``conf/`` names them in its defaults lists."""
    store = ConfigStore.instance()
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=name, node=schema)
