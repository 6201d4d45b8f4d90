"""Configure what is measured of a model: perplexity, tasks, speed and memory, speech, texts, ranks."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from lillama.config.choices import Format, InvalidRows, Normalizer, Source
from lillama.config.data import MADE, TextConfig
from lillama.config.hashed import by_content
from lillama.config.option import option
from lillama.core.errors import POSITIVE, require


@option("evaluate/perplexity", "perplexity")
@dataclass(kw_only=True, slots=True)
class PerplexityConfig(TextConfig):
    """The text of the curve, in windows of ``seq_len``; ``max_tokens`` cuts it, null takes the whole.

    Windows do not overlap where ``stride`` is null. Otherwise each begins ``stride`` tokens after the one before and
    counts only what that one did not, so that a token is predicted from at least ``seq_len - stride`` others.
    """

    seq_len: int = 2048
    stride: int | None = None
    max_tokens: int | None = None
    batch_size: int = 1

    KEY: ClassVar[str] = "evaluate.perplexity"

    def __post_init__(self) -> None:
        TextConfig.check(self, self.KEY)
        legal = "a perplexity is measured on a text that is read"
        require(self.source not in MADE, f"{self.KEY}.source", self.source.name, legal)
        require(self.seq_len > 1, f"{self.KEY}.seq_len", self.seq_len, "must be at least 2")
        cut = self.max_tokens
        require(cut is None or cut > 1, f"{self.KEY}.max_tokens", cut, "must be at least 2, or null for all")
        step, legal = self.stride, f"must lie between 1 and seq_len - 1 = {self.seq_len - 1}, or null for no overlap"
        require(step is None or 0 < step < self.seq_len, f"{self.KEY}.stride", step, legal)
        require(self.batch_size > 0, f"{self.KEY}.batch_size", self.batch_size, POSITIVE)


@dataclass(kw_only=True, slots=True)
class DomainConfig(PerplexityConfig):
    """One of several texts of ``evaluate.domains``; ``KEY`` is the group that errors name."""

    KEY: ClassVar[str] = "evaluate.domains.texts"


@option("evaluate/zero_shot", "zero_shot", by="lillama.evaluate.zero_shot:ZeroShot")
@dataclass(kw_only=True, slots=True)
class ZeroShotConfig:
    """Tasks of the evaluation harness, by its own names; groups (``mmlu``) stand for their tasks.

    ``metrics`` says which metric is a task's score; a task that is not named has ``acc_norm``, else ``acc``, else the
    first that it has. ``num_fewshot`` null is each task's own number. ``batch_size`` null is the largest that fits on a
    GPU, found by the harness, and 8 on a CPU.
    """

    tasks: list[str] = MISSING
    metrics: dict[str, str] = field(default_factory=dict)
    num_fewshot: int | None = 0
    limit: int | None = None
    batch_size: int | None = None
    chat_template: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.tasks), "evaluate.zero_shot.tasks", [], "give at least one name of a task")
        shots, limit, size = self.num_fewshot, self.limit, self.batch_size
        legal = "must not be negative, or null for each task's own"
        require(shots is None or shots >= 0, "evaluate.zero_shot.num_fewshot", shots, legal)
        require(limit is None or limit > 0, "evaluate.zero_shot.limit", limit, "must be positive, or null for all")
        legal = "must be positive, or null to have it found"
        require(size is None or size > 0, "evaluate.zero_shot.batch_size", size, legal)


@option("evaluate/throughput", "throughput")
@dataclass(kw_only=True, slots=True)
class ThroughputConfig:
    """Speed and memory of inference.

    ``lengths`` are those of the prompts of one forward pass of ``batch_size`` prompts (Table 3); ``decode_batches`` the
    numbers of prompts of ``prompt`` tokens that ``new_tokens`` each are generated for, prefill and decoding apart
    (empty: none). Dense and compressed take turns, ``rounds`` times as far as ``seconds`` reach; ``warmup`` passes come
    before each counted one. In the first round each makes what fits into its share of the time, shortest first, and at
    least one case.
    """

    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192, 16384])
    batch_size: int = 4
    decode_batches: list[int] = field(default_factory=lambda: [1, 4])
    prompt: int = 128
    new_tokens: int = 32
    rounds: int = 5
    warmup: int = 1
    seconds: float = 600.0

    def __post_init__(self) -> None:
        key = "evaluate.throughput"
        legal = "must be positive integers"
        require(all(length > 0 for length in self.lengths), f"{key}.lengths", self.lengths, legal)
        require(all(size > 0 for size in self.decode_batches), f"{key}.decode_batches", self.decode_batches, legal)
        require(bool(self.lengths or self.decode_batches), f"{key}.lengths", [], "nothing is left to be measured")
        require(self.batch_size > 0, f"{key}.batch_size", self.batch_size, POSITIVE)
        require(self.prompt > 0, f"{key}.prompt", self.prompt, POSITIVE)
        require(self.new_tokens > 1, f"{key}.new_tokens", self.new_tokens, "must be at least 2")
        require(self.rounds > 0, f"{key}.rounds", self.rounds, POSITIVE)
        require(self.warmup >= 0, f"{key}.warmup", self.warmup, "must not be negative")
        require(0 < self.seconds < math.inf, f"{key}.seconds", self.seconds, "must be positive and finite")


@option("evaluate/wer", "wer", by="lillama.evaluate.wer:WordErrors")
@dataclass(kw_only=True, slots=True)
class WerConfig(TextConfig):
    """Speech with transcripts: a local folder as ``data=speech`` reads, or a Hub dataset with a column ``audio``.

    ``normalizer`` is the one by which both texts are made alike before words are compared.
    """

    transcript: str | None = None
    language: str | None = None
    max_clips: int | None = None
    batch_size: int = 8
    max_new_tokens: int = 225
    normalizer: Normalizer = Normalizer.english

    def __post_init__(self) -> None:
        key = "evaluate.wer"
        TextConfig.check_files(self, key)  # a run without the stage needs no path
        require(self.source in (Source.speech, Source.hub), f"{key}.source", self.source.name, "must be speech or hub")
        reads, skips = self.format is not Format.auto, self.invalid_rows is not InvalidRows.refuse
        require(not reads, f"{key}.format", self.format.name, "is for local text")
        require(not skips, f"{key}.invalid_rows", self.invalid_rows.name, "a clip that cannot be read is refused")
        clips = self.max_clips
        require(clips is None or clips > 0, f"{key}.max_clips", clips, "must be positive, or null for all")
        require(self.batch_size > 0, f"{key}.batch_size", self.batch_size, POSITIVE)
        require(self.max_new_tokens > 0, f"{key}.max_new_tokens", self.max_new_tokens, POSITIVE)


@option("evaluate/samples", "samples", by="lillama.evaluate.samples:Samples")
@dataclass(kw_only=True, slots=True)
class SamplesConfig:
    """Texts that a model writes on from ``prompts``, one for each of ``seeds``; temperature 0 is greedy, once."""

    prompts: list[str] = MISSING
    seeds: list[int] = field(default_factory=lambda: [0])
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    chat_template: bool = False

    def __post_init__(self) -> None:
        key = "evaluate.samples"
        require(bool(self.prompts), f"{key}.prompts", [], "give at least one")
        require(bool(self.seeds), f"{key}.seeds", [], "give at least one")
        require(self.max_new_tokens > 0, f"{key}.max_new_tokens", self.max_new_tokens, POSITIVE)
        heat = self.temperature
        require(0 <= heat < math.inf, f"{key}.temperature", heat, "must be finite and not negative")
        require(0 < self.top_p <= 1, f"{key}.top_p", self.top_p, "must lie above 0 and at most at 1")


@option("evaluate/stable_rank", "stable_rank", by="lillama.evaluate.stable_rank:StableRanks")
@dataclass(kw_only=True, slots=True)
class StableRankConfig:
    """Of every matrix that may be replaced, and of its outputs on the first ``tokens`` of the perplexity text."""

    tokens: int = 16384
    seq_len: int = 512
    batch_size: int = 4

    def __post_init__(self) -> None:
        require(self.tokens > 1, "evaluate.stable_rank.tokens", self.tokens, "must be at least 2")
        require(self.seq_len > 1, "evaluate.stable_rank.seq_len", self.seq_len, "must be at least 2")
        require(self.batch_size > 0, "evaluate.stable_rank.batch_size", self.batch_size, POSITIVE)


def domain_key(name: str) -> str:
    """Return the configuration group of one of the domains' texts, as errors name it."""
    return f"evaluate.domains.texts.{name}"


@option("evaluate/domains", "domains", by="lillama.evaluate.domains:Domains")
@dataclass(kw_only=True, slots=True)
class DomainsConfig:
    """Perplexity on texts of several kinds, by name; each is measured as ``evaluate.perplexity`` is."""

    texts: dict[str, DomainConfig] = MISSING

    def __post_init__(self) -> None:
        require(bool(self.texts), "evaluate.domains.texts", {}, "give at least one text")


@option("evaluate", "evaluate")
@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Measurements of a run; ``every_tokens=0`` measures the curve at the start and at the end only.

    ``tasks_dir`` is a folder with the tasks' data, for machines without the Hub. ``baseline`` is a dense model (as
    ``model.path``) that is measured beside a finished checkpoint; a run that compresses has its teacher for that.
    ``dense=false`` leaves the dense model out.
    """

    every_tokens: int = 0
    tasks_dir: str | None = by_content()
    baseline: str | None = by_content()
    dense: bool = True
    perplexity: PerplexityConfig = MISSING
    zero_shot: ZeroShotConfig = MISSING
    throughput: ThroughputConfig = MISSING
    wer: WerConfig = MISSING
    samples: SamplesConfig = MISSING
    stable_rank: StableRankConfig = MISSING
    domains: DomainsConfig = MISSING

    def __post_init__(self) -> None:
        require(self.every_tokens >= 0, "evaluate.every_tokens", self.every_tokens, "must not be negative")
