"""Choose parser and compression by a file's name."""

from pathlib import Path

from lillama.config import Format

SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson"), Format.jsonl),
    ".json": Format.json,
    ".csv": Format.csv,
    **dict.fromkeys((".tsv", ".tab"), Format.tsv),
    **dict.fromkeys((".parquet", ".pq"), Format.parquet),
    ".arrow": Format.arrow,
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), Format.text),
}
# Read as text where a pattern or a path names them; a folder by itself stands for its prose and its tables.
CODE = (".py", ".c", ".h", ".cc", ".cpp", ".java", ".js", ".ts", ".go", ".rs", ".sh", ".tex")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")


def compression_of(file: Path) -> str | None:
    """Return the suffix of a compressed file, in small letters."""
    suffix = file.suffix.lower()
    return suffix if suffix in COMPRESSED else None


def format_of(file: Path, *, code: bool = False) -> Format | None:
    """Tell the format of a file by its name; None for a suffix that is not known.

    :param code: whether source code counts as text.
    """
    suffix = Path(file.stem).suffix if compression_of(file) else file.suffix
    return Format.text if code and suffix.lower() in CODE else SUFFIXES.get(suffix.lower())
