"""Configure the start of the factors."""

from dataclasses import dataclass

from lillama.config.choices import OutputMoment, Place, Split
from lillama.config.option import option
from lillama.core.errors import POSITIVE, require


@dataclass(kw_only=True, slots=True)
class InitConfig:
    """Start of the factors; ``keep_bias=false`` drops the biases of replaced matrices, as the authors' code does."""

    keep_bias: bool = True


@option("init", "svd", by="lillama.init.svd:svd_start")
@dataclass(kw_only=True, slots=True)
class SvdConfig(InitConfig):
    """The best rank-r matrix in the Frobenius norm (Eq. 2)."""

    split: Split = Split.us_v


@option("init", "random", by="lillama.init.random:random_start")
@dataclass(kw_only=True, slots=True)
class RandomConfig(InitConfig):
    """Normal factors with standard deviation sqrt(1 / in_features) (Figure 5)."""

    seed: int = 0


@option("init", "feature", by="lillama.init.feature:feature_start")
@dataclass(kw_only=True, slots=True)
class FeatureConfig(InitConfig):
    """The best rank-r map for the outputs on calibration tokens (Eq. 3)."""

    tokens: int = 16384
    floor: float = 1e-7

    def __post_init__(self) -> None:
        require(self.tokens > 0, "init.tokens", self.tokens, POSITIVE)
        require(0 < self.floor < 1, "init.floor", self.floor, "must lie between 0 and 1, exclusive")


TRUE_LABELS, SAMPLED_LABELS = "true", "sampled"


@option("init", "kfac", by="lillama.init.kfac:kfac_start")
@dataclass(kw_only=True, slots=True)
class KfacConfig(InitConfig):
    """The factors that raise the loss least by its Kronecker-factored curvature (a moment on each side of a matrix).

    ``tokens`` are those of both moments. The gradients are of the loss of the text's own next tokens
    (``labels=true``) or of tokens that are drawn from the model (``sampled``). ``input_damping`` and ``output_damping``
    are added to every eigenvalue of a moment, as shares of their mean; ``table_damping`` to the weight of every row of
    an embedding's table or a head, since most tokens of a vocabulary are rare. ``shrinkage`` is the share that is taken
    off the entries outside the diagonal of the full output moment. ``place`` is where hidden states wait between the
    passes.
    """

    tokens: int = 65536
    output: OutputMoment = OutputMoment.full
    labels: str = TRUE_LABELS  # no enum: YAML reads the word true as a boolean
    input_damping: float = 1e-6
    output_damping: float = 1e-2
    table_damping: float = 0.2
    shrinkage: float = 0.0
    place: Place = Place.memory
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.tokens > 0, "init.tokens", self.tokens, POSITIVE)
        self.labels = str(self.labels).lower()
        legal = f"must be {TRUE_LABELS} or {SAMPLED_LABELS}"
        require(self.labels in (TRUE_LABELS, SAMPLED_LABELS), "init.labels", self.labels, legal)
        for key in ("input_damping", "output_damping", "table_damping"):
            share = getattr(self, key)
            require(1e-12 <= share <= 1e3, f"init.{key}", share, "a share of the mean eigenvalue, from 1e-12 to 1000")
        require(0 <= self.shrinkage <= 1, "init.shrinkage", self.shrinkage, "a share, from 0 to 1")
