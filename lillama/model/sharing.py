"""Weights that a model holds under several names: stored once, and so neither cut nor trained block by block."""

from torch import nn


def shared_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Find the parameters with more than one name: ``id(parameter)`` to its names, in module order.

    Tied by the family's own code (Zamba2's attention blocks, a head and its embedding) or one module at two places.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: found for key, found in names.items() if len(found) > 1}
