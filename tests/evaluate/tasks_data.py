"""A folder of task data, a few invented rows a task, in the layout that ``evaluate.tasks_dir`` reads."""

import json
from pathlib import Path
from typing import Any

WORDS = ("river", "stone", "cloud", "lamp", "paper", "wheel", "salt", "glass")
NAMES = ("piqa", "arc_easy", "boolq")


def _piqa(number: int, one: str, two: str) -> dict[str, Any]:
    return {"goal": f"Move the {one}", "sol1": f"Lift the {two}.", "sol2": "Wait.", "label": number % 2}


def _arc(number: int, one: str, two: str) -> dict[str, Any]:
    choices = {"text": [two, one, "none of them"], "label": ["A", "B", "C"]}
    question = f"Which of them is a {one}?"
    return {"id": str(number), "question": question, "choices": choices, "answerKey": "ABC"[number % 3]}


def _boolq(number: int, one: str, two: str) -> dict[str, Any]:
    return {"question": f"is a {one} a {two}", "passage": f"A {one} lies here.", "idx": number, "label": number % 2}


def _openbookqa(number: int, one: str, two: str) -> dict[str, Any]:
    choices = {"text": [two, one, "glass", "salt"], "label": ["A", "B", "C", "D"]}
    return {"id": str(number), "question_stem": f"A {one} is", "choices": choices, "answerKey": "ABCD"[number % 4]}


def _social_iqa(number: int, one: str, two: str) -> dict[str, Any]:
    answers = {f"answer{letter}": f"a {word}" for letter, word in zip("ABC", (one, two, "lamp"), strict=True)}
    said = {"context": f"Kim took the {one}.", "question": "What comes next?"}
    return {**said, **answers, "label": str(number % 3 + 1)}


def _logiqa(number: int, one: str, two: str) -> dict[str, Any]:
    said = {"context": f"Every {one} is a {two}.", "question": "So what is it?"}
    return {"label": "abcd"[number % 4], **said, "options": [one, two, "both", "neither"]}


def _truthfulqa(number: int, one: str, two: str) -> dict[str, Any]:
    targets = {"choices": ["No.", "Yes."], "labels": [1, 0]}
    return {"question": f"Is a {one} a {two}?", "mc1_targets": targets, "mc2_targets": targets}


def _winogrande(number: int, one: str, two: str) -> dict[str, Any]:
    options = {"option1": f"the {one}", "option2": f"the {two}", "answer": str(number % 2 + 1)}
    return {"sentence": f"The {one} fell on the {two} because _ was loose.", **options}


def _hellaswag(number: int, one: str, two: str) -> dict[str, Any]:
    context = {"ctx_a": f"A man lifts the {one}.", "ctx_b": "he", "ctx": f"A man lifts the {one}. he"}
    endings = [f"drops the {two}.", "waits.", "sings.", "leaves."]
    return {"ind": number, "activity_label": "Moving", **context, "endings": endings, "label": str(number % 4)}


def _afrimmlu(number: int, one: str, two: str) -> dict[str, Any]:
    choices = str([one, two, "both", "neither"])
    return {"subject": "things", "question": f"Menene {one}?", "choices": choices, "answer": "ABCD"[number % 4]}


def _mmlu(number: int, one: str, two: str) -> dict[str, Any]:
    return {"question": f"What is a {one}?", "choices": [one, two, "both", "neither"], "answer": number % 4}


ROW = {
    "piqa": _piqa,
    "arc_easy": _arc,
    "boolq": _boolq,
    "openbookqa": _openbookqa,
    "social_iqa": _social_iqa,
    "logiqa": _logiqa,
    "truthfulqa": _truthfulqa,
    "winogrande": _winogrande,
    "hellaswag": _hellaswag,
    "afrimmlu": _afrimmlu,
    "mmlu": _mmlu,
}


def rows(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with the columns that the harness's task reads."""
    words = ((number, WORDS[(number + seed) % 8], WORDS[(3 * number + seed + 1) % 8]) for number in range(count))
    return [ROW[name](*own) for own in words]


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
