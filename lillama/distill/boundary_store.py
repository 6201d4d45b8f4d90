"""Store of what has flowed up to a block, an entry a batch, in host memory or in memory-mapped files."""

from pathlib import Path

import torch

from lillama.config import Place
from lillama.distill.student_stream import BoundaryActivations
from lillama.model.activations import ActivationStore


class BoundaryStore:
    """One :class:`BoundaryActivations` a batch, by number.

    :param folder: where files are kept with ``place=disk``. :param device: where a boundary is handed out.
    """

    def __init__(self, place: Place, folder: Path | None, device: torch.device) -> None:
        setting = f"distill.schedule.place={place.name}"
        self._store = ActivationStore(folder if place is Place.disk else None, device, setting=setting)

    def __getitem__(self, number: int) -> BoundaryActivations:
        """Return the boundary of a batch, on the device."""
        return BoundaryActivations(*self._store[number]) if number in self._store else BoundaryActivations()

    def __setitem__(self, number: int, boundary: BoundaryActivations) -> None:
        self._store[number] = (dict(boundary.teacher), dict(boundary.student))

    def clear(self) -> None:
        """Forget everything and remove the files."""
        self._store.clear()
