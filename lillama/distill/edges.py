"""What has flowed up to a block in every batch, kept in host memory or in memory-mapped files."""

import math
import os
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lillama.config import Place
from lillama.distill.stream import Edge
from lillama.errors import ConfigError


class Edges:
    """One :class:`Edge` a batch, by number.

    :param folder: where files are kept with ``place=disk``. :param device: where an edge is handed out.
    """

    def __init__(self, place: Place, folder: Path | None, device: torch.device) -> None:
        self.device = device
        self._held: dict[int, tuple[Any, Any]] = {}
        self._folder = folder if place is Place.disk else None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, number: int) -> Edge:
        """The edge of a batch, on the device; the one after it is read ahead from its files."""
        held = self._held.get(number)
        if held is None:
            return Edge()
        tree_map(_read_ahead, self._held.get(number + 1))
        teacher, student = tree_map(self._out, held)
        return Edge(teacher, student)

    def __setitem__(self, number: int, edge: Edge) -> None:
        numbers = count()
        held = (dict(edge.teacher), dict(edge.student))
        self._held[number] = tree_map(lambda value: self._in(value, f"{number:06d}-{next(numbers)}"), held)

    def clear(self) -> None:
        """Forget everything; the files go."""
        self._held.clear()
        if self._folder is not None:
            for file in self._folder.glob("*.bin"):
                file.unlink()
            self._folder.rmdir()

    def _in(self, value: Any, name: str) -> Any:
        if not isinstance(value, Tensor):
            return value
        if self._folder is None:
            return value.detach().to("cpu", copy=True)
        return _Mapped(self._folder / f"{name}.bin", value.detach())

    def _out(self, value: Any) -> Any:
        tensor = value.tensor() if isinstance(value, _Mapped) else value
        return tensor.to(self.device) if isinstance(tensor, Tensor) else tensor


class _Mapped:
    """A tensor in a file of its own, mapped only while it is used: its pages are the system's to drop."""

    def __init__(self, file: Path, value: Tensor) -> None:
        self.file, self.shape, self.dtype = file, value.shape, value.dtype
        # A new file each time: the old one may be what the value was computed from, and still be mapped.
        file.unlink(missing_ok=True)
        try:
            with file.open("wb") as out:  # a full disk is an error here, and a dead process in a mapping
                out.truncate(value.nbytes)
                os.posix_fallocate(out.fileno(), 0, value.nbytes)
        except OSError as error:
            raise ConfigError(
                f"distill.schedule.place=disk: {file.parent} cannot hold {value.nbytes / 1e9:.1f} GB more"
                f" ({error.strerror}); free some space and start the same command again"
            ) from None
        self._map(shared=True).copy_(value)

    def tensor(self) -> Tensor:
        """The values, read from the file as they are used."""
        return self._map(shared=False)

    def _map(self, *, shared: bool) -> Tensor:
        size = math.prod(self.shape)
        return torch.from_file(str(self.file), shared=shared, size=size, dtype=self.dtype).view(self.shape)


def _read_ahead(value: Any) -> None:
    if isinstance(value, _Mapped) and hasattr(os, "posix_fadvise"):
        handle = os.open(value.file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)
