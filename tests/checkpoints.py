"""The weights that a run has saved."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def weights(folder: Path) -> dict[str, Tensor]:
    """Those of the checkpoint in a run's folder."""
    return load_file(folder / "checkpoint" / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Whether they are equal to the last bit, under the same names."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def stored_parameters(folder: Path, model: nn.Module) -> int:
    """How many parameters the files of a checkpoint hold: all their numbers but those of the buffers.

    Buffers are known by their number: some families store them under other names.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = sum(tensor.numel() for name, tensor in model.state_dict().items() if name not in parameters)
    files = (load_file(file) for file in folder.glob("*.safetensors"))
    return sum(tensor.numel() for file in files for tensor in file.values()) - buffers
