"""Snapshots of a distillation: written whole or not at all, with checksums, the last few kept.

A snapshot is a folder ``step-00000012`` with a file a part and ``manifest.json``, which is written last and holds the
SHA-256 of every file and its own.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from lillama.config import SnapshotConfig
from lillama.core.errors import ConfigError, SnapshotError
from lillama.core.half_written import sweep, whole
from lillama.core.provenance import digest, file_digest

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
FORMAT = 1
KINDS = {"key": str, "step": int, "position": dict, "note": dict, "files": dict}  # what a manifest holds
OTHER_SHAPE = (ValueError, KeyError, TypeError, AttributeError)  # what reading plain values of another shape raises
Parts = Mapping[str, Any]  # name of a part -> tensors and plain values, nested


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A readable snapshot: how far the distillation was (``position``) and what the caller noted with it."""

    folder: Path
    position: dict[str, Any]
    note: dict[str, Any]

    @property
    def step(self) -> int:
        """After how many steps it was made."""
        return int(self.folder.name.removeprefix("step-"))

    @property
    def parts(self) -> list[str]:
        """Return the names of its parts."""
        return sorted(file.stem for file in self.folder.glob("*.pt"))

    def part(self, name: str, device: torch.device | str = "cpu") -> Any:
        """One part's tensors and values."""
        return torch.load(self.folder / f"{name}.pt", map_location=device, weights_only=True)


class Snapshots:
    """The snapshots of one run.

    :param folder: where they are kept. :param key: what the run is; those of another run are not its own.
    :param background: write from another thread, a copy in host memory: where weights lie on a device.
    :param check: raises a KeyError, TypeError, ValueError or AttributeError for a note that the run cannot go on from:
        the snapshot then counts as damaged.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        config: SnapshotConfig,
        *,
        background: bool = False,
        check: Callable[[Mapping[str, Any]], object] = lambda note: None,
    ) -> None:
        self.folder = folder
        self.key = key
        self.config = config
        self._check = check
        self._since = time.monotonic()
        self._pool = ThreadPoolExecutor(1, "snapshot") if background else None
        self._writing: Future[None] | None = None

    def due(self, step: int) -> bool:
        """Tell whether it is time for one after this many steps."""
        steps, minutes = self.config.every_steps, self.config.every_minutes
        by_steps = steps is not None and step % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self._since >= 60 * minutes)

    def made(self) -> None:
        """Another process has made one: the clock begins again."""
        self._since = time.monotonic()

    def save(self, step: int, position: Mapping[str, Any], note: Mapping[str, Any], parts: Parts) -> None:
        """Write a snapshot; in the background, its error is raised by the next one or by :meth:`close`.

        :raises SnapshotError: where it cannot be written (a full disk).
        """
        self._wait()
        manifest = {"format": FORMAT, "key": self.key, "step": step, "position": position, "note": note}
        if self._pool is None:
            self._write(step, manifest, parts)
        else:
            self._writing = self._pool.submit(self._write, step, manifest, on_host(parts))
        self.made()

    def latest(self) -> Snapshot | None:
        """Return the newest snapshot, to go on from; a word of it is logged.

        :raises ConfigError: where the folder holds those of another run.
        """
        found = self.newest()
        if found is not None:
            log.info("going on from snapshot %s", found.folder.name)
        return found

    def newest(self) -> Snapshot | None:
        """The newest snapshot of this run that is whole; a damaged one is named and removed, the one before it taken.

        :raises ConfigError: where the folder holds those of another run.
        """
        self._wait()
        sweep(self.folder)
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            try:
                manifest = _checked(folder)
                if manifest["key"] == self.key:
                    self._check(manifest["note"])
            except (OSError, *OTHER_SHAPE) as error:
                log.warning("snapshot %s is damaged (%s); the one before it is tried", folder.name, error)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if manifest["key"] != self.key:
                raise ConfigError(
                    f"hydra.run.dir={self.folder.parent}: holds snapshots of another run;"
                    f" choose another folder or name, or remove {self.folder.name}/"
                )
            return Snapshot(folder, manifest["position"], manifest["note"])
        return None

    def close(self) -> None:
        """Wait for what is being written."""
        self._wait()
        if self._pool is not None:
            self._pool.shutdown()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, manifest: dict[str, Any], parts: Parts) -> None:
        final = self.folder / f"step-{step:08d}"
        try:
            with whole(final) as temporary:
                temporary.mkdir(parents=True)
                for name, part in parts.items():
                    torch.save(part, temporary / f"{name}.pt")
                _seal(temporary, manifest)
                shutil.rmtree(final, ignore_errors=True)
            _flush(self.folder)
        except (OSError, RuntimeError) as error:
            raise SnapshotError(self._refused(step, error)) from None
        for old in sorted(self.folder.glob("step-*"))[: -self.config.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _refused(self, step: int, error: Exception) -> str:
        before = max((folder.name for folder in self.folder.glob("step-*")), default=None)
        kept = f"{before} is whole: free some space and start the same command again" if before else "there is no other"
        free = shutil.disk_usage(self.folder.parent).free
        reason = str(error).splitlines()[0]
        return f"snapshot at step {step}: cannot be written ({reason}; {free / 1e9:.1f} GB are free); {kept}"


def random_state() -> dict[str, Any]:
    """Return the state of torch's random numbers, on the CPU and on every GPU."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the numbers that :func:`random_state` stood before."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def on_host(parts: Parts) -> Parts:
    """Return a copy in host memory."""

    def copied(value: Any) -> Any:
        return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value

    return tree_map(copied, dict(parts))


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a folder's files; all of it is on the disk afterwards."""
    manifest["files"] = {file.name: file_digest(file) for file in sorted(folder.glob("*.pt"))}
    with (folder / MANIFEST).open("w", encoding="utf-8") as out:
        json.dump({"manifest": manifest, "sha256": digest(manifest)}, out, indent=1)
    for file in (*folder.iterdir(), folder):
        _flush(file)


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked(folder: Path) -> dict[str, Any]:
    """Read a snapshot's manifest, when everything is as it was written.

    :raises ValueError, OSError: otherwise.
    """
    held = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(held, dict) or not isinstance(held.get("manifest"), dict):
        raise ValueError(f"{MANIFEST} is none of a snapshot")
    manifest: dict[str, Any] = held["manifest"]
    if held.get("sha256") != digest(manifest):
        raise ValueError(f"{MANIFEST} was changed")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"format {manifest.get('format')} is not known")
    for key, kind in KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{MANIFEST} lacks {key}")
    if set(manifest["files"]) != {file.name for file in folder.glob("*.pt")}:
        raise ValueError(f"{MANIFEST} names other files than there are")
    for name, checksum in manifest["files"].items():
        if file_digest(folder / name) != checksum:
            raise ValueError(f"{name} was changed")
    return manifest
