"""The weights that a run has saved."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def weights(folder: Path) -> dict[str, Tensor]:
    """Those of the checkpoint in a run's folder."""
    return load_file(folder / "checkpoint" / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether they are equal to the last bit, under the same names."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
