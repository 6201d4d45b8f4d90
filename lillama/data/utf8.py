"""Files of text as UTF-8 that can be read from any offset: unpacked and recoded where they are something else."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from lillama.core.errors import ConfigError
from lillama.data.formats import compression_of

# UTF-32's marks begin with UTF-16's.
MARKS = (
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
CHUNK = 2**20
UNREADABLE = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Utf8File:
    """A file of UTF-8 from ``start`` on, after its byte order mark.

    :param size: in bytes. :param kept: the temporary file, if it is one; it is removed with this object.
    """

    path: Path
    start: int
    size: int
    kept: Any = None


def utf8_file(file: Path, where: str) -> Utf8File:
    """Open a file of text as UTF-8; one that is compressed or in UTF-16 or UTF-32 is rewritten as a temporary file.

    :raises ConfigError: for a file that cannot be read or unpacked, or has no room as a temporary one.
    """
    try:
        with opened(file) as source:
            head = source.read(CHUNK)
        encoding = next((name for mark, name in MARKS if head.startswith(mark)), None)
        start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        bare = b"\r" in head and b"\n" not in head  # lines that end as on old Macs
        if encoding is None and not bare and compression_of(file) is None:
            return Utf8File(file, start, file.stat().st_size)
        return _rewritten(file, encoding, start, bare=bare)
    except UNREADABLE as error:
        raise ConfigError(f"{where}: cannot be read ({' '.join(str(error).split())})") from None


def _rewritten(file: Path, encoding: str | None, start: int, *, bare: bool) -> Utf8File:
    kept = NamedTemporaryFile(prefix="lillama-")  # noqa: SIM115 - it lives as long as the rows that are read of it
    with opened(file) as source:
        for chunk in _decoded(source, encoding):
            kept.write(chunk.replace(b"\r", b"\n") if bare else chunk)
    kept.flush()
    return Utf8File(Path(kept.name), start, kept.tell(), kept)


def _decoded(source: BinaryIO, encoding: str | None) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
    while chunk := source.read(CHUNK):
        yield chunk if decoder is None else decoder.decode(chunk).encode()
    if decoder is not None:
        yield decoder.decode(b"", final=True).encode()


def opened(file: Path) -> Any:
    """Open a file's bytes, unpacked."""
    match compression_of(file):
        case None:
            return file.open("rb")
        case ".gz":
            return gzip.open(file)
        case ".bz2":
            return bz2.open(file)
        case ".xz":
            return lzma.open(file)
        case _:
            return _zstandard(file)


def _zstandard(file: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise OSError("reading zstd needs the package pyarrow: pip install datasets") from None
    return pyarrow.input_stream(str(file), compression="zstd")
