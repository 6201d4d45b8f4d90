"""Entries by kind and key: read whole or not at all, made once among processes, evicted past a limit."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from lillama.core.cache.entries import entries, remove, sweep_partial, touch
from lillama.core.cache.folders import LOCKS, SUFFIXES, claim, is_entry, is_ours
from lillama.core.cache.seal import broken, checksum, seal

log = logging.getLogger(__name__)
# An imported model is slow to make and a score slower still: only a person removes them.
LIMITED = ("tokens", "factors")
UNCOUNTED = 100  # the share of the limit that is written before the folders, of thousands of files, are counted again
Content = TypeVar("Content")


class Cache:
    """Files and folders under ``root``, by kind and key.

    A file's name ends with a checksum of its kind, key and content, and a folder holds such a seal: what is damaged,
    or stands under another's key, is found at reading. ``limit`` is how many bytes tokens and factorisations may take
    together (None: any), within a hundredth for every process that writes; what was used least recently goes first,
    and nothing that this object has read or written goes at all.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root = root
        self.limit = limit
        self._in_use: set[Path] = set()
        self._said: set[str] = set()
        self._left_alone: set[str] = set()  # kinds that cannot be written
        self._swept = False
        self._free = 0  # bytes that may be written before the folders are counted again

    @classmethod
    def at(cls, folder: str, limit_gb: float) -> "Cache":
        """Return the cache of a configuration's ``cache_dir`` and ``cache_limit_gb`` (10^9 bytes)."""
        return cls(Path(folder).expanduser(), int(limit_gb * 1e9))

    def read(self, kind: str, key: str, load: Callable[[Path], Content]) -> Content | None:
        """Give what ``load`` makes of the entry's file.

        None where there is none, or where its checksum or its content does not fit: it is dropped then, and named.

        :param load: raises whatever it likes for content that does not fit.
        """
        for file in self._files(kind, key):
            try:
                whole = checksum(kind, key, file) == file.name.split(".")[-2]
            except OSError as error:  # evicted just now, or not for this user to read: no sign of damage
                log.debug("cache: %s: %s", file, error)
                continue
            if whole:
                try:
                    content = load(file)
                except FileNotFoundError:
                    continue
                except Exception as error:  # noqa: BLE001 - whatever content that does not fit leads its reader to
                    log.debug("cache: %s: %s", file, error)
                else:
                    touch(file)
                    self._in_use.add(file)
                    return content
            self._drop(file, kind, "it is not what was written under this key")
        return None

    def write(self, kind: str, key: str, content: bytes) -> None:
        """Keep an entry, the whole of it or nothing; a cache that cannot be written is told of once and left alone."""
        if kind in self._left_alone:
            return
        if self.limit is not None and len(content) > self.limit:
            self._say("cache: an entry of %.3g GB is larger than cache_limit_gb; such are not kept", len(content) / 1e9)
            return
        try:
            self._write(kind, key, content)
        except OSError as error:
            self._left_alone.add(kind)
            message = "cache: %s cannot be written (%s); going on without it"
            log.warning(message, self.root / kind, error.strerror or error)

    def folder(self, kind: str, key: str) -> Path | None:
        """Find an entry that is a folder; None where there is none, or it is not what was sealed: it is dropped then.

        :raises OSError: where it cannot be read.
        """
        place = self.root / kind / key
        if not is_ours(place.parent) or not is_entry(place, kind):
            return None
        reason = broken(place, kind, key)
        if reason is not None:
            self._drop(place, kind, reason)
            return None
        touch(place)
        return place

    def write_folder(self, kind: str, key: str, fill: Callable[[Path], None]) -> Path:
        """Keep what ``fill`` writes into a folder, sealed, the whole of it or nothing; its files' modes follow umask.

        :raises OSError: where it cannot be written.
        """
        place = claim(self.root, kind) / key
        self._sweep()
        temporary = place.with_name(f"{uuid.uuid4().hex}.partial")
        temporary.mkdir()
        try:
            fill(temporary)
            for file in (path for path in temporary.rglob("*") if path.is_file()):
                file.chmod(temporary.stat().st_mode & 0o666)  # some writers keep their files to one user
            seal(temporary, kind, key)
            if place.exists():
                remove(place)
            temporary.replace(place)
        finally:
            remove(temporary)
        return place

    def made_folder(self, kind: str, key: str, what: str, fill: Callable[[Path], None]) -> Path:
        """Find an entry that is a folder, or make it as :meth:`write_folder` does: of several processes, one does.

        :raises OSError: where it cannot be read or written.
        """
        held = self.folder(kind, key)
        if held is None:
            with self.lock(key, what):
                held = self.folder(kind, key) or self.write_folder(kind, key, fill)
        return held

    @contextmanager
    def lock(self, key: str, what: str) -> Iterator[None]:
        """Hold a key among processes: of two that need the same thing, one makes it and the other waits and reads.

        :param what: named in the log while this process waits.
        """
        lock = self._acquired(key, what)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _acquired(self, key: str, what: str) -> FileLock | None:
        """None where the folder takes no lock: two processes then do the same work."""
        try:
            lock = FileLock(claim(self.root, LOCKS) / f"{key}.lock", thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("another process is making %s; waiting for it", what)
                lock.acquire()
        except OSError as error:
            log.debug("cache: no lock in %s: %s", self.root, error)
            return None
        return lock

    def _files(self, kind: str, key: str) -> list[Path]:
        folder = self.root / kind
        found = folder.glob(f"{key}.*{SUFFIXES[kind]}") if is_ours(folder) else ()
        return sorted(file for file in found if is_entry(file, kind))

    def _drop(self, path: Path, kind: str, reason: str) -> None:
        log.warning("cache: %s/%s is damaged (%s); it is dropped and made again", kind, path.name, reason)
        remove(path)

    def _write(self, kind: str, key: str, content: bytes) -> None:
        folder = claim(self.root, kind)
        self._sweep()
        file = folder / f"{key}.{checksum(kind, key, content)}{SUFFIXES[kind]}"
        temporary = folder / f"{uuid.uuid4().hex}.partial"
        try:
            with temporary.open("wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            for older in self._files(kind, key):
                remove(older)
            if kind not in LIMITED or self._make_room(len(content)):
                temporary.replace(file)
                self._in_use.add(file)
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed processes left, once: it is a day old."""
        if not self._swept:
            sweep_partial(self.root)
            self._swept = True

    def _make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit; false where only what this object uses is left.

        The folders are counted anew after every hundredth of the limit that was written, since others write there too.
        """
        self._free -= size
        if self.limit is None or self._free >= 0:
            return True
        held = sorted(entries(self.root, LIMITED), key=lambda entry: entry.used)
        total = sum(entry.size for entry in held) + size
        for entry in held:
            if total > self.limit and entry.path not in self._in_use:
                remove(entry.path)
                total -= entry.size
        if total > self.limit:
            message = "cache: cache_limit_gb=%.3g is full of what this run itself uses; no more is kept"
            self._say(message, self.limit / 1e9)
        self._free = min(self.limit - total, self.limit // UNCOUNTED)
        return total <= self.limit

    def _say(self, message: str, value: float) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning(message, value)
