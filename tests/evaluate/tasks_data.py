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
                "openbookqa": {
                    "id": str(number),
                    "question_stem": f"A {one} is",
                    "choices": {"text": [two, one, "glass", "salt"], "label": ["A", "B", "C", "D"]},
                    "answerKey": "ABCD"[number % 4],
                },
                "social_iqa": {
                    "context": f"Kim took the {one}.",
                    "question": "What comes next?",
                    **{f"answer{letter}": f"a {word}" for letter, word in zip("ABC", (one, two, "lamp"), strict=True)},
                    "label": str(number % 3 + 1),
                },
                "logiqa": {
                    "label": "abcd"[number % 4],
                    "context": f"Every {one} is a {two}.",
                    "question": "So what is it?",
                    "options": [one, two, "both", "neither"],
                },
                "truthfulqa": {
                    "question": f"Is a {one} a {two}?",
                    "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]},
                    "mc2_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]},
                },
                "winogrande": {
                    "sentence": f"The {one} fell on the {two} because _ was loose.",
                    "option1": f"the {one}",
                    "option2": f"the {two}",
                    "answer": str(number % 2 + 1),
                },
                "hellaswag": {
                    "ind": number,
                    "activity_label": "Moving",
                    "ctx_a": f"A man lifts the {one}.",
                    "ctx_b": "he",
                    "ctx": f"A man lifts the {one}. he",
                    "endings": [f"drops the {two}.", "waits.", "sings.", "leaves."],
                    "label": str(number % 4),
                },
                "afrimmlu": {
                    "subject": "things",
                    "question": f"Menene {one}?",
                    "choices": str([one, two, "both", "neither"]),
                    "answer": "ABCD"[number % 4],
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


def fill_all(folder: Path, count: int = 2) -> Path:
    """A folder with every task of the paper's tables."""
    splits = {
        **dict.fromkeys(("piqa", "boolq", "social_iqa", "truthfulqa", "winogrande", "hellaswag"), "validation"),
        **dict.fromkeys(("arc_easy", "openbookqa", "logiqa"), "test"),
    }
    for name, split in splits.items():
        write(folder / name / f"{split}.jsonl", rows(name, count))
    write(folder / "arc_challenge" / "test.jsonl", rows("arc_easy", count, seed=3))
    for number in range(1, 6):
        write(folder / f"afrimmlu_direct_hau_prompt_{number}" / "test.jsonl", rows("afrimmlu", count))
    return folder
