"""The plan: how much is cut where, apart from the cutting. It is saved with the weights and replayed on load."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lillama.config import FactorForm, PlanFileConfig, StrategyConfig
from lillama.core.errors import ConfigError
from lillama.model.targets import ModelShape

INDEX_BYTES = 4  # int32


@dataclass(frozen=True, slots=True)
class RankPlan:
    """The rank of every matrix that is replaced, and what that comes to.

    ``ranks`` maps module names to ranks, in module order; ``factors`` is how the factors are stored, which takes
    ``indices`` integers beside the parameters. ``requested`` and ``realised`` are shares of the whole model's
    parameters, embeddings and head included. ``predicted_loss_rise`` is what the moments of ``init=kfac`` predict for
    its start, in nats per token; None where there are none.
    """

    ranks: dict[str, int]
    dense_parameters: int
    parameters: int
    blocks: tuple[int, ...]
    requested: float
    factors: FactorForm = FactorForm.plain
    indices: int = 0
    predicted_loss_rise: float | None = None

    @classmethod
    def of(cls, shape: ModelShape, ranks: Mapping[str, int], requested: float | None = None) -> "RankPlan":
        """Return the plan with these ranks for this model; the request is what they come to, where it is not given.

        :raises ConfigError: for no ranks, a name that the model does not have, or a rank that does not save.
        """
        if not ranks:
            raise ConfigError("strategy: this request replaces no matrix")
        targets = {target.name: target for target in shape.targets}
        for name, rank in ranks.items():
            if name not in targets:
                raise ConfigError(f"plan: {name} is no matrix of this model; the first is {next(iter(targets), None)}")
            if rank < 1 or not targets[name].saves(rank):
                raise ConfigError(f"plan: rank {rank} of {name} {targets[name].shape} saves no parameters")
        chosen = [target for target in shape.targets if target.name in ranks]
        freed = sum(target.parameters - target.cost(ranks[target.name]) for target in chosen)
        parameters = shape.parameters - freed
        return cls(
            ranks={target.name: ranks[target.name] for target in chosen},
            dense_parameters=shape.parameters,
            parameters=parameters,
            blocks=tuple(sorted({target.block for target in chosen})),
            requested=1 - parameters / shape.parameters if requested is None else requested,
            factors=shape.form,
            indices=sum(target.indices() for target in chosen),
        )

    @property
    def realised(self) -> float:
        """Return the share of the model's parameters that the plan removes."""
        return 1 - self.parameters / self.dense_parameters

    def as_dict(self) -> dict[str, object]:
        """Return what ``plan.json`` holds."""
        return {
            "ranks": self.ranks,
            "factors": self.factors.name,
            "parameters": self.parameters,
            "dense_parameters": self.dense_parameters,
            "blocks": len(self.blocks),
            "matrices": len(self.ranks),
            "block_indices": list(self.blocks),
            "reduction": {"requested": self.requested, "realised": self.realised},
            "predicted_loss_rise": self.predicted_loss_rise,
            "indices": {"count": self.indices, "bytes": INDEX_BYTES * self.indices},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RankPlan":
        """Return the plan whose :meth:`as_dict` this is; older ones say nothing of how factors are stored: plain."""
        return cls(
            ranks=whole_ranks(values["ranks"]),
            dense_parameters=values["dense_parameters"],
            parameters=values["parameters"],
            blocks=tuple(values["block_indices"]),
            requested=values["reduction"]["requested"],
            factors=FactorForm[values.get("factors", FactorForm.plain.name)],
            indices=values.get("indices", {}).get("count", 0),
            predicted_loss_rise=values.get("predicted_loss_rise"),
        )


def out_of_reach(shape: ModelShape, target: int, smallest: int, config: StrategyConfig, *, why: str) -> ConfigError:
    """The error for a size that a strategy cannot reach: what was asked, in its own words, and the least possible."""
    reach = 1 - smallest / shape.parameters
    if config.parameters is not None:
        return ConfigError(
            f"strategy.parameters={config.parameters}: out of reach {why}; the smallest possible is {smallest:,}"
            f" parameters ({reach:.1%} fewer)"
        )
    asked = 1 - target / shape.parameters
    return ConfigError(f"strategy.reduction={asked:.4g}: out of reach {why}; the largest possible is {reach:.1%}")


def whole_ranks(ranks: Mapping[str, Any]) -> dict[str, int]:
    """Ranks by name, as a file has them.

    :raises ValueError: for a rank that is no integer.
    """
    for name, rank in ranks.items():
        if type(rank) is not int:
            raise ValueError(f"the rank of {name} is {rank!r}, no integer")
    return dict(ranks)


def plan_file(shape: ModelShape, target: int, config: StrategyConfig) -> dict[str, int]:
    """Return the ranks of a saved ``plan.json``; the budget is the plan's own.

    :raises ConfigError: for a file that is no plan, or a plan of factors that are stored otherwise: what its ranks come
        to depends on that.
    """
    assert isinstance(config, PlanFileConfig)
    try:
        values = json.loads(Path(config.file).read_text())
        made = values.get("factors", FactorForm.plain.name)
        ranks = whole_ranks(values["ranks"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"strategy.file={config.file}: not a readable plan.json with `ranks` ({error})") from None
    if made != shape.form.name:
        raise ConfigError(f"strategy.file={config.file}: is a plan of factors={made}, not {shape.form.name}; give that")
    return ranks
