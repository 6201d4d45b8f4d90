"""Rows of parquet and Arrow files, mapped into memory: only those that are asked for are read."""

from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from lillama.config import Format
from lillama.core.errors import ConfigError
from lillama.data.rows import RowError, Rows

BATCH = 1024  # rows of parquet that are in memory at a time


class TableRows(Rows):
    """Rows of an Arrow table."""

    def __init__(self, table: Any, source: str, kept: Any = None) -> None:
        self._table, self._source, self._kept = table, source, kept

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._table.slice(index, 1).to_pylist()[0]
        except ValueError as error:  # text that is not UTF-8, an Arrow type without a Python value
            raise RowError(f"{self.where(index)}: cannot be read ({error})") from None

    def where(self, index: int) -> str:
        return f"{self._source}: row {index + 1}"


def table_rows(file: Path, form: Format, where: str) -> TableRows:
    """Open a parquet or an Arrow file; parquet is unpacked into a temporary Arrow file.

    :raises ConfigError: for a file that is neither, or without the package pyarrow.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{where}: reading {form.name} needs the package pyarrow: pip install datasets") from None
    try:
        if form is Format.arrow:
            return TableRows(_mapped(file), where)
        kept = NamedTemporaryFile(prefix="lillama-")  # noqa: SIM115 - it lives as long as the rows that are read of it
        with pyarrow.parquet.ParquetFile(file) as source, pyarrow.ipc.new_stream(kept, source.schema_arrow) as sink:
            for batch in source.iter_batches(BATCH):
                sink.write_batch(batch)
        kept.flush()
        return TableRows(_mapped(Path(kept.name)), where, kept)
    except (OSError, ValueError, NotImplementedError) as error:
        kind = "an Arrow" if form is Format.arrow else "a parquet"
        raise ConfigError(f"{where}: not {kind} file ({' '.join(str(error).split())})") from None


def _mapped(file: Path) -> Any:
    """An Arrow file as a table: a stream, as the library datasets writes them, or a file with its index at the end."""
    import pyarrow

    source = pyarrow.memory_map(str(file))
    magic = source.read(6)
    source.seek(0)
    return (pyarrow.ipc.open_file if magic == b"ARROW1" else pyarrow.ipc.open_stream)(source).read_all()
