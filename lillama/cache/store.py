"""Entries by kind and key: read whole or not at all, made once among processes, evicted past a limit."""

import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from lillama.cache.entries import PARTIAL, SUFFIXES, entries, remove, sweep_partial, touch

log = logging.getLogger(__name__)
# An imported model is slow to make and a score slower still: only a person removes them.
LIMITED = ("tokens", "factors")
Content = TypeVar("Content")


class Cache:
    """Files under ``root``, by kind and key.

    A file's name ends with the checksum of its content, so that what is damaged is found at reading. ``limit`` is how
    many bytes tokens and factorisations may take together (None: any); what was used least recently goes first, and
    nothing that this object has read or written goes at all.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root = root
        self.limit = limit
        self._in_use: set[Path] = set()
        self._said: set[str] = set()
        self._writable = True

    @classmethod
    def at(cls, folder: str, limit_gb: float) -> "Cache":
        """The cache of a configuration's ``cache_dir`` and ``cache_limit_gb`` (10^9 bytes)."""
        return cls(Path(folder).expanduser(), int(limit_gb * 1e9))

    def read(self, kind: str, key: str, load: Callable[[Path], Content]) -> Content | None:
        """What ``load`` makes of the entry's file; None where there is none, or it was damaged and is dropped."""
        for file in self._files(kind, key):
            try:
                if _checksum(file) == _checksum_in_name(file):
                    touch(file)
                    self._in_use.add(file)
                    return load(file)
            except FileNotFoundError:  # another process has just evicted it
                continue
            except OSError as error:
                log.debug("cache: %s: %s", file, error)
            log.warning("cache: %s/%s is damaged; it is dropped and made again", kind, file.name)
            remove(file)
        return None

    def write(self, kind: str, key: str, content: bytes) -> None:
        """Keep an entry, the whole of it or nothing; a cache that cannot be written is told of once and left alone."""
        if not self._writable:
            return
        if self.limit is not None and len(content) > self.limit:
            self._say("cache: an entry of %.3g GB is larger than cache_limit_gb; such are not kept", len(content) / 1e9)
            return
        try:
            self._write(kind, key, content)
        except OSError as error:
            self._writable = False
            log.warning("cache: %s cannot be written (%s); going on without it", self.root, error.strerror or error)

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
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{key}.lock", thread_local=False)
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
        return sorted((self.root / kind).glob(f"{key}.*{SUFFIXES[kind]}"))

    def _write(self, kind: str, key: str, content: bytes) -> None:
        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        sweep_partial(self.root)
        file = folder / f"{key}.{hashlib.sha256(content).hexdigest()}{SUFFIXES[kind]}"
        temporary = folder / f"{uuid.uuid4().hex}{PARTIAL}"
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

    def _make_room(self, size: int) -> bool:
        """Evict until ``size`` more bytes fit; false where only what this object uses is left."""
        if self.limit is None:
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
        return total <= self.limit

    def _say(self, message: str, value: float) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning(message, value)


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _checksum_in_name(file: Path) -> str:
    return file.name.split(".")[-2]
