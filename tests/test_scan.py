"""The scan of transformers' families: its table, and families that once ended in a traceback or in a wrong model."""

import csv

import pytest
from transformers import __version__

from lillama.config import KfacConfig, Task, UniformConfig
from lillama.init import start_factors
from lillama.model.student import Student
from lillama.model.targets import model_shape
from lillama.strategy import make_plan
from tests.families import FixedBatch
from tests.scan.__main__ import FAMILIES, HEAD, TABLE
from tests.scan.changes import CHANGES
from tests.scan.examine import batch_of, built, examine

pytestmark = pytest.mark.long
ENDINGS = [
    (Task.causal_lm, "deepseek_v4", "compresses", ""),  # a linear class that has a weight for each group of its input
    (Task.causal_lm, "inkling2_text", "compresses", ""),  # its weights are renamed on their way to a file
    (Task.masked_lm, "gte", "compresses", ""),  # its weights are merged on their way to a file
    (Task.seq2seq_lm, "marian", "compresses", ""),  # its tables of positions are in no file
    (
        Task.causal_lm,
        "emu3",
        "refused",
        "cannot be loaded (transformers' AutoModelForCausalLM knows no Emu3TextConfig)",
    ),
    (Task.causal_lm, "reformer", "refused", "its blocks take prev_attn_output before their hidden states"),
    (Task.masked_lm, "perceiver", "refused", "reads inputs, not tokens"),
    (Task.speech_seq2seq, "moonshine", "refused", "hears another kind of features than Whisper's"),
]


@pytest.mark.parametrize(("task", "family", "ends", "because"), ENDINGS, ids=[own[1] for own in ENDINGS])
def test_a_family_ends_as_the_table_says(task, family, ends, because, tmp_path):
    if family not in FAMILIES[task]:
        pytest.skip(f"transformers {__version__} has no {family}")
    changes = CHANGES.get(f"{family} {task.name}", CHANGES.get(family, {}))
    finding = examine(task, family, changes, tmp_path / "checkpoint")
    assert (finding.ends, because in finding.because) == (ends, True), finding.because
    assert ends != "compresses" or finding.planned == finding.saved < finding.dense


@pytest.mark.parametrize("family", ["ctrl", "recurrent_gemma"])
def test_the_curvature_is_taken_of_a_model_that_changes_what_flows_in_place_or_keeps_it(family):
    model, meta = built(Task.causal_lm, family, {})
    plan = make_plan(model_shape(meta), UniformConfig(reduction=0.2))
    batch = FixedBatch(batch_of(model, 2, 8))
    student = Student(model, start_factors(model, plan.ranks, batch, KfacConfig()))
    student.check_finite()


def test_the_table_has_every_family_and_nothing_broken():
    head, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    found = {(own["task"], own["family"]): own for own in csv.DictReader(lines)}
    assert {own["ends"] for own in found.values()} <= {"compresses", "refused", "not run"}
    assert all(own["because"] for own in found.values() if own["ends"] != "compresses")
    if head == HEAD:
        assert set(found) == {(task.name, family) for task, families in FAMILIES.items() for family in families}
