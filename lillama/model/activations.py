"""Store of activations between two passes over the data, in host memory or in memory-mapped files."""

import math
import os
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lillama.core.errors import ConfigError


class ActivationStore:
    """Nested values with tensors in them, by number.

    :param folder: where each tensor has a file of its own; None keeps them in host memory. :param device: where tensors
        are handed out. :param setting: what chose the folder, for errors.
    """

    def __init__(self, folder: Path | None, device: torch.device, *, setting: str) -> None:
        self._held: dict[int, Any] = {}
        self._folder, self._device, self._setting = folder, device, setting
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, number: int) -> bool:
        return number in self._held

    def __getitem__(self, number: int) -> Any:
        """Return the values of a number, on the device; those of the next one are read ahead from their files."""
        tree_map(_read_ahead, self._held.get(number + 1))
        return tree_map(self._out, self._held[number])

    def __setitem__(self, number: int, value: Any) -> None:
        numbers = count()
        self._held[number] = tree_map(lambda part: self._in(part, f"{number:06d}-{next(numbers)}"), value)

    def drop(self, number: int) -> None:
        """Forget the values of a number and remove their files."""
        tree_map(_remove, self._held.pop(number, None))

    def clear(self) -> None:
        """Forget everything and remove the files."""
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
        return _Mapped(self._folder / f"{name}.bin", value.detach(), self._setting)

    def _out(self, value: Any) -> Any:
        tensor = value.tensor() if isinstance(value, _Mapped) else value
        return tensor.to(self._device) if isinstance(tensor, Tensor) else tensor


class _Mapped:
    """A tensor in a file of its own, mapped only while it is used: its pages are the system's to drop."""

    def __init__(self, file: Path, value: Tensor, setting: str) -> None:
        self.file, self.shape, self.dtype = file, value.shape, value.dtype
        # A new file each time: the old one may be what the value was computed from, and still be mapped.
        file.unlink(missing_ok=True)
        try:
            with file.open("wb") as out:  # a full disk is an error here, and a dead process in a mapping
                out.truncate(value.nbytes)
                os.posix_fallocate(out.fileno(), 0, value.nbytes)
        except OSError as error:
            raise ConfigError(
                f"{setting}: {file.parent} cannot hold {value.nbytes / 1e9:.1f} GB more"
                f" ({error.strerror}); free some space and start the same command again"
            ) from None
        self._map(shared=True).copy_(value)

    def tensor(self) -> Tensor:
        """Return the values, read from the file as they are used."""
        return self._map(shared=False)

    def _map(self, *, shared: bool) -> Tensor:
        size = math.prod(self.shape)
        return torch.from_file(str(self.file), shared=shared, size=size, dtype=self.dtype).view(self.shape)


def _remove(value: Any) -> None:
    if isinstance(value, _Mapped):
        value.file.unlink(missing_ok=True)


def _read_ahead(value: Any) -> None:
    if isinstance(value, _Mapped) and hasattr(os, "posix_fadvise"):
        handle = os.open(value.file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)
