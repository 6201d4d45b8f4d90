"""Scan all families of transformers at tiny size: ``OMP_NUM_THREADS=1 python -m tests.scan [FAMILY ...]``.

Each family runs in a fork with a time limit, so that a crash does not end the scan. A whole scan writes families.csv.
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
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers.models.auto import modeling_auto as auto
from transformers.utils import logging as logging_of_transformers

from lillama.config import Task
from tests.scan.changes import CHANGES
from tests.scan.examine import Finding, examine

TABLE = Path(__file__).with_name("families.csv")
SECONDS = 240
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
    parser.add_argument("--table", type=Path, help="where to write; families.csv beside this file for a whole scan")
    parser.add_argument("--traces", action="store_true", help="print the traceback of what fails")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging_of_transformers.set_verbosity_error()
    logging.disable(logging.WARNING)
    findings = []
    for task, families in FAMILIES.items():
        for family in families:
            if not given.only or family in given.only:
                findings.append(apart(task, family, traces=given.traces))
                print(task.name, family, *list(asdict(findings[-1]).values())[2:], sep="|", flush=True)
    print(dict(Counter(finding.ends for finding in findings)))
    table = given.table or (None if given.only else TABLE)
    if table is not None:
        write(findings, table)


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
            found = examine(task, family, CHANGES.get(family, {}), folder / "checkpoint", traces=traces)
        except BaseException as error:  # noqa: BLE001 - the fork ends here
            traceback.print_exc()
            found = Finding(task.name, family, "traceback", repr(error)[:200])
        answer.write_text(json.dumps(asdict(found)))


def write(findings: Sequence[Finding], table: Path) -> None:
    """Write the table, one family a line."""
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        rows = [asdict(replace(finding, stay_dense=" ".join(finding.stay_dense))) for finding in findings]  # type: ignore[arg-type]
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)


if __name__ == "__main__":
    main()
