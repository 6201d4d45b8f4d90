"""Content hashes: every byte counts, and a file that has not changed is read once."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lillama.core import provenance
from lillama.core.provenance import file_digest, path_digest


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file that is hashed piece by piece, its last piece not whole."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WHOLE_FILE", 1000), ("PIECE", 128), ("READ", 50)):
            patch.setattr(provenance, name, value)
        file = tmp_path_factory.mktemp("large") / "weights.bin"
        file.write_bytes(bytes(range(250)) * 5)
        yield file


@given(place=st.integers(0, 1249))
def test_every_byte_of_a_large_file_counts(large, place):
    before, content = file_digest(large), large.read_bytes()
    changed = bytearray(content)
    changed[place] ^= 1
    large.write_bytes(changed)
    assert file_digest(large) != before
    large.write_bytes(content)
    assert file_digest(large) == before


def test_pieces_that_change_places_and_zeros_at_the_end_count(large):
    content = large.read_bytes()
    found = {file_digest(large)}
    for other in (content[128:256] + content[:128] + content[256:], content + bytes(1), content + bytes(128)):
        large.write_bytes(other)
        found.add(file_digest(large))
    large.write_bytes(content)
    assert len(found) == 4


def test_a_file_that_has_not_changed_is_read_once_and_one_that_has_is_read_again(tmp_path, monkeypatch):
    read = []
    original = provenance._whole
    monkeypatch.setattr(provenance, "_whole", lambda opened: read.append(1) or original(opened))
    monkeypatch.setattr(provenance, "READ", 1)
    file = tmp_path / "file"
    file.write_bytes(b"first")
    monkeypatch.setattr(time, "time", lambda: file.stat().st_ctime + 60)
    first = file_digest(file)
    assert file_digest(file) == path_digest(file) == first
    assert len(read) == 1
    times = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(file) != first, "a modification time that was set back deceives nobody"
    replaced = tmp_path / "replaced"
    replaced.write_bytes(b"third")
    replaced.rename(file)
    assert len({first, file_digest(file)}) == 2
    assert len(read) == 3


def test_a_file_that_was_just_written_is_not_taken_as_known(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "READ", 1)
    file, found = tmp_path / "file", set()
    for content in (b"a", b"b", b"c"):
        file.write_bytes(content)
        found.add(file_digest(file))
    assert len(found) == 3
