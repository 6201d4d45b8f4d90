"""Hold what a run is asked for: its configuration, with the models and the cache that this names, opened once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lillama.config import RunConfig, Stage
from lillama.core.cache import Cache
from lillama.model.source import ModelSource
from lillama.model.targets import ModelShape, model_shape


@dataclass(frozen=True)
class Run:
    """A configuration, its models, and the cache: one for all, which does not evict what this run has used.

    :param baseline: the dense model beside a finished checkpoint, where one is given.
    :param overrides: what was said on the command line; kept with the result, so that a report can name the cell.
    :param choices: the option that was chosen of every group, by which runs can be told apart.
    """

    config: RunConfig
    cache: Cache
    model: ModelSource
    baseline: ModelSource | None
    overrides: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, overrides: Sequence[str] = (), choices: Mapping[str, str] | None = None) -> "Run":
        """Open what a configuration names; nothing is read yet."""
        cache, place = Cache.at(config.cache_dir, config.cache_limit_gb), Path(config.cache_dir).expanduser()
        base = config.baseline
        model, baseline = ModelSource(config.model, place), None if base is None else ModelSource(base, place)
        return cls(config, cache, model, baseline, overrides, choices or {})

    @property
    def stages(self) -> set[Stage]:
        """Return the configured stages."""
        return set(self.config.stages)

    @property
    def writer(self) -> ModelSource:
        """Return the model that writes ``data=generated``: the dense one, where there is one."""
        return self.model if Stage.init in self.stages else self.baseline or self.model

    @cached_property
    def shape(self) -> ModelShape:
        """Return the model's matrices, with factors stored as configured."""
        config = self.config
        return model_shape(self.model.meta, config.model.targets).factored(config.factors.form)
