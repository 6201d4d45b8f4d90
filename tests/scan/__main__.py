"""Scan all families of transformers at tiny size: ``OMP_NUM_THREADS=1 python -m tests.scan [FAMILY ...]``.

Each family runs in a fork with a time limit, so that a crash does not end the scan. Its line in families.csv is written
at once; a scan of some families leaves the other lines as they are.
"""

import argparse
import csv
import json
import logging
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto as auto
from transformers.utils import logging as logging_of_transformers

from lillama.config import Task
from tests.scan.changes import CHANGES
from tests.scan.examine import Finding, examine

TABLE = Path(__file__).with_name("families.csv")
SECONDS = 60
HEAD = f"# transformers {transformers.__version__}"
FAMILIES = {
    Task.causal_lm: auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    Task.seq2seq_lm: auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    Task.masked_lm: auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    Task.speech_seq2seq: auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}


def main() -> None:
    """Scan what is asked for, print each ending, and write the table of a whole scan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="families, where not all")
    parser.add_argument("--table", type=Path, default=TABLE, help="where to write; families.csv beside this file")
    parser.add_argument("--traces", action="store_true", help="print the traceback of what fails")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging_of_transformers.set_verbosity_error()
    logging.disable(logging.WARNING)
    table = {} if not given.only else read(given.table)
    for task, families in FAMILIES.items():
        for family in families:
            if not given.only or family in given.only:
                finding = apart(task, family, traces=given.traces)
                table[task.name, family] = row(finding)
                print(*table[task.name, family].values(), sep="|", flush=True)
                write(table, given.table)
    print(dict(Counter(own["ends"] for own in table.values())))


def apart(task: Task, family: str, *, traces: bool = False) -> Finding:
    """Examine one family in a fork."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        context = multiprocessing.get_context("fork")
        child = context.Process(target=_child, args=(task, family, Path(folder), answer, traces))
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
            child.join()
            return Finding(task.name, family, "traceback", f"no end within {SECONDS} s")
        if not answer.exists():
            return Finding(task.name, family, "traceback", f"the process ended with status {child.exitcode}")
        return Finding(**json.loads(answer.read_text()))


def _child(task: Task, family: str, folder: Path, answer: Path, traces: bool) -> None:
    with Path(os.devnull).open("w") as nowhere:
        if not traces:
            os.dup2(nowhere.fileno(), 2)
        try:
            changes = CHANGES.get(f"{family} {task.name}", CHANGES.get(family, {}))
            found = examine(task, family, changes, folder / "checkpoint", traces=traces)
        except BaseException as error:  # noqa: BLE001 - the fork ends here
            traceback.print_exc()
            found = Finding(task.name, family, "traceback", repr(error)[:200])
        answer.write_text(json.dumps(asdict(found)))


def row(finding: Finding) -> dict[str, str]:
    """Return a family's line of the table."""
    values = asdict(replace(finding, stay_dense=" ".join(finding.stay_dense)))  # type: ignore[arg-type]
    return {key: str(value) for key, value in values.items()}


def read(table: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Read a table's lines, if it is one of the same transformers."""
    if not table.exists():
        return {}
    head, *lines = table.read_text(encoding="utf-8").splitlines()
    if head != HEAD:
        raise SystemExit(f"{table}: is of another transformers; scan all families")
    return {(own["task"], own["family"]): own for own in csv.DictReader(lines)}


def write(rows: Mapping[tuple[str, str], Mapping[str, str]], table: Path) -> None:
    """Write the table in the order of a whole scan, one family a line."""
    order = [(task.name, family) for task, families in FAMILIES.items() for family in families]
    with table.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{HEAD}\n")
        writer = csv.DictWriter(file, [own.name for own in fields(Finding)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in order if key in rows)


if __name__ == "__main__":
    main()
