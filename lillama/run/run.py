"""Hold what a run is asked for: its configuration, with the models and the cache that this names, opened once."""

from dataclasses import dataclass
from pathlib import Path

from lillama.config import RunConfig, Stage
from lillama.core.cache import Cache
from lillama.model.source import ModelSource
from lillama.model.targets import ModelShape, model_shape


@dataclass(frozen=True, slots=True)
class Run:
    """A configuration, its models, and the cache: one for all, which does not evict what this run has used.

    :param baseline: the dense model beside a finished checkpoint, where one is given.
    """

    config: RunConfig
    cache: Cache
    model: ModelSource
    baseline: ModelSource | None

    @classmethod
    def of(cls, config: RunConfig) -> "Run":
        """Open what a configuration names; nothing is read yet."""
        cache, place = Cache.at(config.cache_dir, config.cache_limit_gb), Path(config.cache_dir).expanduser()
        base = config.baseline
        return cls(config, cache, ModelSource(config.model, place), None if base is None else ModelSource(base, place))

    @property
    def stages(self) -> set[Stage]:
        """Return the configured stages."""
        return set(self.config.stages)

    @property
    def writer(self) -> ModelSource:
        """Return the model that writes ``data=generated``: the dense one, where there is one."""
        return self.model if Stage.init in self.stages else self.baseline or self.model

    @property
    def shape(self) -> ModelShape:
        """Return the model's matrices, with factors stored as configured."""
        config = self.config
        return model_shape(self.model.meta, config.model.targets).factored(config.factors.form)
