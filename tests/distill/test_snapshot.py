"""Snapshots: whole or not at all, damage is found, the last two stay; going on is as good as never having stopped."""

import copy
import itertools
import json
import logging
import resource
import signal
import time
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lillama.config import (
    AdamPrecision,
    BlockwiseConfig,
    DistillConfig,
    FactorForm,
    Keep,
    ScheduleConfig,
    SnapshotConfig,
    StudentInputs,
)
from lillama.core.errors import ConfigError, DivergedError, Preempted, SnapshotError
from lillama.core.preempt import Preemption, listening
from lillama.core.provenance import digest
from lillama.distill import LoopContext, blockwise, distill
from lillama.distill.batch import student_on
from lillama.distill.progress import ORDERS, as_parts
from lillama.distill.snapshot import Snapshots
from lillama.model.student import Student
from lillama.model.surgery import blank_modules, take_orders
from tests.conftest import random_tokens
from tests.distill.test_joint import RANKS, loss_of
from tests.marks import long_unless
from tests.model.test_student import student_of

MARK = 64  # tokens between two points
history = {}  # the points of each run, by folder
EVERY = SnapshotConfig(every_steps=1, every_minutes=None)
SCHEDULES = {
    "joint": ScheduleConfig(),
    "blockwise": BlockwiseConfig(),
    "heldout": BlockwiseConfig(heldout=0.25, patience=2),
}


@pytest.fixture(scope="module", autouse=True)
def uncompiled():
    """The step of 8-bit moments as torchao writes it: to compile it takes half a minute (test_teaching does)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        yield


def snapshots(folder, config=EVERY, key="this run", **options):
    return Snapshots(folder / "snapshots", key, config, **options)


class Killed(BaseException):
    """What a kill is to a process."""


def weights(student):
    return {(i, n): p.detach().clone() for i, block in student.blocks.items() for n, p in block.state_dict().items()}


def config_of(schedule, **options):
    return DistillConfig(
        **({"schedule": SCHEDULES[schedule], "batch_size": 2, "epochs": 2, "lr": 1e-3} | options),
    )


def run(model, config, folder, *, kill_at=None, every=EVERY, preemption=None, form=FactorForm.plain):
    """A distillation that goes on from the folder's snapshot, where there is one; ``kill_at`` ends it at a step."""
    model, held = copy.deepcopy(model), snapshots(folder, every)
    start = held.latest()
    # torchao keeps moments of 4096 numbers and more in 8 bits.
    ranks = dict.fromkeys(RANKS, 40) if config.moments is AdamPrecision.int8 else RANKS
    student = student_of(model, ranks, form) if start is None else Student(model, blank_modules(model, ranks, form))
    if start is not None and form is FactorForm.pivoted:
        take_orders(student.orders(), start.part(ORDERS))
    points = [] if start is None else list(start.note.get("points", []))

    def on_step(progress):
        if progress.step == kill_at:
            raise Killed

    def measure(tokens):
        if tokens // MARK > (points[-1] if points else 0) // MARK:
            points.append(tokens)

    context = LoopContext(
        on_step=on_step,
        measure=measure,
        every_tokens=MARK,
        preemption=preemption or Preemption(),
        snapshots=held,
        start=start,
        note=lambda: {"points": points},
        scratch=folder / "scratch",
        fixed=as_parts(student.orders()),
    )
    distill(student, random_tokens(8, 16), config, loss_of(StudentInputs.teacher_student), context)
    history.setdefault(folder, points)[:] = points
    return weights(student)


WAYS = {
    "plain": {},
    "pivoted": {},
    "keep": {"keep": Keep.lowest_batch},
    "micro_batch": {"micro_batch": 1},
    "moments": {"moments": AdamPrecision.int8},
    "clip_norm": {"clip_norm": 0.1},
}


ONCE = {"joint": {"plain", "keep", "clip_norm"}, "blockwise": {"pivoted", "micro_batch", "moments"}}


@pytest.mark.parametrize(
    ("schedule", "way"),
    long_unless(lambda schedule, way: way in ONCE[schedule], [(schedule, way) for schedule in ONCE for way in WAYS]),
)
def test_a_run_that_is_killed_at_every_step_ends_bit_for_bit_like_one_that_is_not(tiny_model, tmp_path, schedule, way):
    options, form = WAYS[way], FactorForm.pivoted if way == "pivoted" else FactorForm.plain
    config = config_of(schedule, **options)
    whole = run(tiny_model, config, tmp_path / "whole", form=form)
    kills = 0
    for step in range(100):
        try:
            found = run(tiny_model, config, tmp_path / "killed", kill_at=step, form=form)
            break
        except Killed:
            kills += 1
    assert kills == (8 if schedule == "joint" else 16)
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert history[tmp_path / "killed"] == history[tmp_path / "whole"] != []


@pytest.mark.long
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(st.integers(0, 15), max_size=4),
    every=st.integers(1, 5),
    schedule=st.sampled_from(sorted(SCHEDULES)),
)
def test_however_it_is_killed(tiny_model, tmp_path_factory, kills, every, schedule):
    folder, config = tmp_path_factory.mktemp("kills"), config_of(schedule)
    often = SnapshotConfig(every_steps=every, every_minutes=None)
    whole = run(tiny_model, config, folder / "whole", every=often)
    for step in sorted(kills):
        try:
            run(tiny_model, config, folder / "killed", kill_at=step, every=often)
        except Killed:
            continue
    found = run(tiny_model, config, folder / "killed", every=often)
    assert all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.fixture
def three(tmp_path):
    """A folder after three snapshots, the first of which is gone."""
    held = snapshots(tmp_path)
    for step in (1, 2, 3):
        held.save(step, {"step": step}, {"tokens": 10 * step}, {"block_001": {"parameters": [torch.full((64,), step)]}})
    return tmp_path


def test_the_last_two_are_kept_and_the_newest_is_read(three):
    assert sorted(path.name for path in (three / "snapshots").iterdir()) == ["step-00000002", "step-00000003"]
    latest = snapshots(three).latest()
    assert latest.position == {"step": 3}
    assert latest.note == {"tokens": 30}
    assert torch.equal(latest.part("block_001")["parameters"][0], torch.full((64,), 3))


def truncated(file):
    file.write_bytes(file.read_bytes()[:-7])


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def changed(file):
    manifest = file.parent / "manifest.json"
    held = json.loads(manifest.read_text())
    held["manifest"]["position"]["step"] = 99
    manifest.write_text(json.dumps(held))


def unreadable(file):
    truncated(file.parent / "manifest.json")


def lost(file):
    file.unlink()


@pytest.mark.parametrize("damage", [truncated, flipped, changed, unreadable, lost])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(three, damage, caplog):
    damage(three / "snapshots" / "step-00000003" / "block_001.pt")
    with caplog.at_level(logging.WARNING):
        assert snapshots(three).latest().position == {"step": 2}
    assert "step-00000003 is damaged" in caplog.text
    damage(three / "snapshots" / "step-00000002" / "block_001.pt")
    assert snapshots(three).latest() is None


def resealed(folder, change):
    """A manifest changed by somebody who knows how it is sealed."""
    file = folder / "manifest.json"
    manifest = change(json.loads(file.read_text())["manifest"])
    file.write_text(json.dumps({"manifest": manifest, "sha256": digest(manifest)}))


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{}", '{"manifest": 3}', '{"manifest": {}, "sha256": 1}'])
def test_a_manifest_of_another_shape_is_a_damaged_one(three, text):
    (three / "snapshots" / "step-00000003" / "manifest.json").write_text(text)
    assert snapshots(three).latest().position == {"step": 2}


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda held, key=key: {name: held[name] for name in held if name != key}
            for key in ("position", "note", "key")
        ),
        lambda held: held | {"files": ["block_001.pt"]},
        lambda held: held | {"files": {}},
        lambda held: held | {"position": []},
        lambda held: held | {"note": {"tokens": "many"}},
        lambda held: held | {"note": {}},
        lambda held: [held],
    ],
)
def test_a_sealed_manifest_of_another_shape_is_a_damaged_one_too(three, change):
    resealed(three / "snapshots" / "step-00000003", change)
    assert snapshots(three, check=lambda note: note["tokens"] + 1).latest().position == {"step": 2}


def test_those_of_another_run_are_neither_taken_nor_removed(three):
    with pytest.raises(ConfigError, match="another run"):
        snapshots(three, key="another run").latest()
    assert snapshots(three).latest().position == {"step": 3}


def test_a_damaged_one_does_not_push_out_the_good_ones(three):
    truncated(three / "snapshots" / "step-00000003" / "block_001.pt")
    held = snapshots(three, SnapshotConfig(keep=1))
    assert held.latest().position == {"step": 2}
    held.save(1, {"step": 1}, {}, {})
    assert held.latest() is not None


def test_only_one_process_saves_and_the_clock_of_all_begins_again(tmp_path):
    held = snapshots(tmp_path, SnapshotConfig(every_minutes=1e-3))
    time.sleep(0.1)
    assert held.due(1)
    held.made()
    assert not held.due(1)


def test_what_a_killed_process_left_half_written_is_swept(three):
    half, own = (three / "snapshots" / f".{name}.partial" for name in (f"lillama-{'0' * 32}", "step-00000004"))
    half.mkdir(), own.mkdir()
    (half / "block_000.pt").write_bytes(b"half")
    assert snapshots(three).latest().position == {"step": 3}
    assert not half.exists()
    assert own.exists(), "whose that is nobody knows"


def test_a_full_disk_stops_with_a_clear_error_and_the_one_before_is_whole(three):
    """The system refuses files above a size, as a full disk refuses them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(SnapshotError, match=r"step 4: cannot be written .*step-00000003 is whole") as caught:
            snapshots(three).save(4, {"step": 4}, {}, {"block_001": {"parameters": [torch.zeros(2**18)]}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(caught.value)
    assert snapshots(three).latest().position == {"step": 3}
    assert len(list((three / "snapshots").iterdir())) == 2


def test_in_the_background_the_values_of_the_moment_are_written(tmp_path):
    held = snapshots(tmp_path, background=True)
    values = torch.zeros(1000)
    held.save(1, {"step": 1}, {}, {"block_001": {"parameters": [values]}})
    values.fill_(7)
    held.close()
    assert torch.equal(snapshots(tmp_path).latest().part("block_001")["parameters"][0], torch.zeros(1000))


def test_an_error_in_the_background_is_not_lost(tmp_path):
    (tmp_path / "snapshots").write_text("a file in the way")
    held = snapshots(tmp_path, background=True)
    held.save(1, {"step": 1}, {}, {})
    with pytest.raises(SnapshotError, match="step 1"):
        held.close()


def test_by_steps_or_by_minutes_or_never(tmp_path):
    assert [snapshots(tmp_path, SnapshotConfig(every_steps=3, every_minutes=None)).due(n) for n in (1, 2, 3)] == [
        False,
        False,
        True,
    ]
    assert snapshots(tmp_path, SnapshotConfig(every_minutes=1e-9)).due(1)
    assert not snapshots(tmp_path, SnapshotConfig(every_minutes=60)).due(1)
    assert SnapshotConfig(every_minutes=None).off


def test_a_weight_that_is_not_finite_enters_no_snapshot(tiny_model, tmp_path):
    student = student_of(tiny_model, RANKS)

    def poison(progress):
        if progress.step == 2:
            with torch.no_grad():
                student.blocks[3].mlp.up_proj.A.weight[0, 0] = float("inf")

    context = LoopContext(on_step=poison, snapshots=snapshots(tmp_path))
    with pytest.raises(DivergedError, match="block 003: holds values that are not finite"):
        distill(student, random_tokens(8, 16), DistillConfig(batch_size=1), loss_of(StudentInputs.teacher), context)
    assert snapshots(tmp_path).latest().position["step"] == 2, "the last good one"


@pytest.mark.parametrize("schedule", ["joint", "blockwise"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_end_it_saves_itself_after_the_step_and_ends(tiny_model, tmp_path, schedule, number):
    config = config_of(schedule)
    whole = run(tiny_model, config, tmp_path / "whole")
    model, held = copy.deepcopy(tiny_model), snapshots(tmp_path, SnapshotConfig(every_minutes=60))
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with pytest.raises(Preempted, match=number.name), listening() as preemption:
            context = LoopContext(
                on_step=lambda progress: progress.step == 2 and signal.raise_signal(number),
                snapshots=held,
                preemption=preemption,
                scratch=tmp_path / "scratch",
            )
            data, loss = random_tokens(8, 16), loss_of(StudentInputs.teacher_student)
            distill(student_of(model, RANKS), data, config, loss, context)
    finally:
        signal.signal(number, before)
    assert heard == [number], "whoever listened before is told: a launcher that resubmits the job"
    assert snapshots(tmp_path).latest().position["step"] == 3
    found = run(tiny_model, config, tmp_path)
    assert all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.mark.parametrize(
    ("call", "on_the_way_back"),
    long_unless(lambda call, back: (call == 11) is back, itertools.product([1, 11], [False, True])),
)
def test_asked_to_end_between_two_blocks(tiny_model, tmp_path, monkeypatch, call, on_the_way_back):
    """While what flows up to the next block is computed, for the first time or after a restart."""
    config = config_of("blockwise", batch_size=1)
    whole = run(tiny_model, config, tmp_path / "whole")
    if on_the_way_back:
        with pytest.raises(Killed):
            run(tiny_model, config, tmp_path / "run", kill_at=20)
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return student_on(*args)

    monkeypatch.setattr(blockwise, "student_on", interrupted)
    with pytest.raises(Preempted), listening() as preemption:
        run(tiny_model, config, tmp_path / "run", preemption=preemption)
    assert len(calls) == call
    found = run(tiny_model, config, tmp_path / "run")
    assert all(torch.equal(found[key], whole[key]) for key in whole)


def test_ctrl_c_waits_for_the_step_and_a_second_one_does_not():
    with pytest.raises(KeyboardInterrupt), listening() as preemption, preemption.later():
        signal.raise_signal(signal.SIGINT)
        assert preemption.signal is signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), listening():
        signal.raise_signal(signal.SIGINT)


def test_outside_of_a_step_it_ends_at_once():
    with pytest.raises(Preempted), listening():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with Preemption().later():
        pass
