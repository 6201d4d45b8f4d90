"""A folder of task data, a few invented rows a task, in the layout that ``evaluate.tasks_dir`` reads."""

import json
from pathlib import Path
from typing import Any

WORDS = ("river", "stone", "cloud", "lamp", "paper", "wheel", "salt", "glass")
NAMES = ("piqa", "arc_easy", "boolq")


def rows(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with the columns that the harness's task reads."""
    found = []
    for number in range(count):
        one, two = WORDS[(number + seed) % 8], WORDS[(3 * number + seed + 1) % 8]
        found.append(
            {
                "piqa": {"goal": f"Move the {one}", "sol1": f"Lift the {two}.", "sol2": "Wait.", "label": number % 2},
                "arc_easy": {
                    "id": str(number),
                    "question": f"Which of them is a {one}?",
                    "choices": {"text": [two, one, "none of them"], "label": ["A", "B", "C"]},
                    "answerKey": "ABC"[number % 3],
                },
                "boolq": {
                    "question": f"is a {one} a {two}",
                    "passage": f"A {one} lies here.",
                    "idx": number,
                    "label": number % 2,
                },
                "mmlu": {
                    "question": f"What is a {one}?",
                    "choices": [one, two, "both", "neither"],
                    "answer": number % 4,
                },
            }[name]
        )
    return found


def write(file: Path, content: list[dict[str, Any]]) -> None:
    """One JSON Lines file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in content))


def fill(folder: Path, count: int = 6) -> Path:
    """A folder with the three tasks, and examples for two of them."""
    write(folder / "piqa" / "validation.jsonl", rows("piqa", count))
    write(folder / "piqa" / "train.jsonl", rows("piqa", 4, seed=5))
    write(folder / "arc_easy" / "test.jsonl", rows("arc_easy", count))
    write(folder / "arc_easy" / "train.jsonl", rows("arc_easy", 4, seed=5))
    write(folder / "boolq" / "validation.jsonl", rows("boolq", count))
    return folder
