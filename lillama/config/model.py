"""Configure what is compressed: a model, and which of its matrices."""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from lillama.config.choices import Dtype, Task, Weights
from lillama.config.hashed import by_content, left_out
from lillama.config.option import option
from lillama.core.errors import require


@dataclass(kw_only=True, slots=True)
class TargetsConfig:
    """Matrices that may be replaced, by shell patterns: a module's name, or what comes after one of its dots.

    ``include`` null is every linear and fused expert of the blocks but routers; the input embedding and the prediction
    head, or a router, are replaced where a pattern names them. What ``exclude`` matches stays dense.
    """

    include: list[str] | None = None
    exclude: list[str] | None = None


@option("model", "model")
@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The teacher: a Hub id, a local folder, a GGUF file, or ``package://<package>/<file>`` in a Python package.

    ``package://<part{1..4}>/<file>`` are the parts of a GGUF in several packages.

    With ``offload`` the blocks stay in host memory, mapped from their files, and each is on the device, in the dtype of
    the run, only while it is needed. ``KEY`` is the setting that errors name.
    """

    KEY: ClassVar[str] = "model.path"

    name: str = by_content(MISSING)
    path: str | None = by_content()
    revision: str | None = None
    tokenizer: str | None = None
    task: Task = Task.auto
    weights: Weights = Weights.pretrained
    architecture: dict[str, Any] = field(default_factory=dict)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    dtype: Dtype = Dtype.auto
    device: str = "auto"
    offload: bool = left_out(False)
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
        known = self.device in ("auto", "cpu", "cuda") or re.fullmatch(r"cuda:\d{1,3}", self.device) is not None
        require(known, "model.device", self.device, "must be auto, cpu, cuda or cuda:N")


@dataclass(kw_only=True, slots=True)
class BaselineConfig(ModelConfig):
    """The dense model that is measured beside a finished checkpoint."""

    KEY: ClassVar[str] = "evaluate.baseline"
