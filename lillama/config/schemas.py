"""The schemas by group, as Hydra is told of them, and a configuration as plain values."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore

from lillama.config.evaluate import (
    DomainsConfig,
    EvaluateConfig,
    PerplexityConfig,
    SamplesConfig,
    StableRankConfig,
    ThroughputConfig,
    WerConfig,
    ZeroShotConfig,
)
from lillama.config.finetune import (
    FinetuneCalibrationConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    FinetuneGeneratedConfig,
    FinetuneMixedConfig,
)
from lillama.config.init import FeatureConfig, KfacConfig, RandomConfig, SvdConfig
from lillama.config.learn import BenchConfig, BlockwiseConfig, DistillConfig, ScheduleConfig
from lillama.config.method import (
    BottomConfig,
    FactorsConfig,
    KfacRanksConfig,
    LossConfig,
    MeasuredRanksConfig,
    MiddleOutConfig,
    MixedConfig,
    ModelConfig,
    PlanFileConfig,
    RankConfig,
    SpectrumConfig,
    TopConfig,
    UniformConfig,
)
from lillama.config.mixed import GeneratedDataConfig, MixedDataConfig
from lillama.config.run import LoggerConfig, RunConfig
from lillama.config.text import DataConfig

SCHEMAS: dict[str | None, dict[str, type]] = {
    None: {"run_schema": RunConfig},
    "model": {"model_schema": ModelConfig},
    "strategy": {
        "bottom_schema": BottomConfig,
        "top_schema": TopConfig,
        "middle_out_schema": MiddleOutConfig,
        "mixed_schema": MixedConfig,
        "uniform_schema": UniformConfig,
        "spectrum_schema": SpectrumConfig,
        "kfac_schema": KfacRanksConfig,
        "measured_schema": MeasuredRanksConfig,
        "rank_schema": RankConfig,
        "plan_schema": PlanFileConfig,
    },
    "factors": {"factors_schema": FactorsConfig},
    "loss": {"loss_schema": LossConfig},
    "init": {
        "svd_schema": SvdConfig,
        "random_schema": RandomConfig,
        "feature_schema": FeatureConfig,
        "kfac_schema": KfacConfig,
    },
    "data": {
        "data_schema": DataConfig,
        "mixed_data_schema": MixedDataConfig,
        "generated_data_schema": GeneratedDataConfig,
    },
    "distill": {"distill_schema": DistillConfig},
    "distill/schedule": {"joint_schema": ScheduleConfig, "blockwise_schema": BlockwiseConfig},
    "finetune": {"finetune_schema": FinetuneConfig},
    "finetune/data": {
        "finetune_data_schema": FinetuneDataConfig,
        "finetune_calibration_schema": FinetuneCalibrationConfig,
        "finetune_mixed_schema": FinetuneMixedConfig,
        "finetune_generated_schema": FinetuneGeneratedConfig,
    },
    "evaluate": {"evaluate_schema": EvaluateConfig},
    "evaluate/perplexity": {"perplexity_schema": PerplexityConfig},
    "evaluate/zero_shot": {"zero_shot_schema": ZeroShotConfig},
    "evaluate/throughput": {"throughput_schema": ThroughputConfig},
    "evaluate/wer": {"wer_schema": WerConfig},
    "evaluate/samples": {"samples_schema": SamplesConfig},
    "evaluate/stable_rank": {"stable_rank_schema": StableRankConfig},
    "evaluate/domains": {"domains_schema": DomainsConfig},
    "logger": {"logger_schema": LoggerConfig},
    "bench": {"bench_schema": BenchConfig},
}


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values, enums by name: for YAML, JSON and hashes.

    What an experiment reports of its runs is left out: no run depends on it.
    """
    return {own.name: _plain(getattr(config, own.name)) for own in fields(config) if own.name != "experiment"}


def _plain(value: Any) -> Any:
    """As OmegaConf would make it of a dataclass, which takes it half a second a run."""
    if is_dataclass(value):
        return {own.name: _plain(getattr(value, own.name)) for own in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return value.name if isinstance(value, Enum) else value


@cache
def register_schemas() -> None:
    """Make the schemas known to Hydra, once; ``conf/`` names them in its defaults lists."""
    # Hydra copies its store at each composition and some hundred times for --help; what it loads from it is a copy too.
    ConfigStore.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=group, name=name, node=schema)
