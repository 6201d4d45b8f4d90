import gc
import hashlib
import io
import re
import string
import subprocess
import sys
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lillama.run.pipeline
import lillama.run.supply
from lillama.config.cells import cell_name
from lillama.core.results import read_json
from lillama.model.source import ModelSource
from lillama.report.__main__ import main as report
from lillama.report.cells import cells
from tests.conftest import ROOT, TINY_RUN

overrides = st.lists(st.tuples(st.sampled_from(["strategy.k", "init", "data.path", "loss"]), st.text(max_size=90)))


@given(overrides, overrides)
def test_cell_names_are_safe_and_differ_where_the_overrides_do(first, second):
    first, second = ([f"{key}={value}" for key, value in pairs] for pairs in (first, second))
    for name in (cell_name(first), cell_name(second)):
        assert 0 < len(name.encode()) < 200
        assert not set(name) - set(string.ascii_letters + string.digits + "._-"), "every tool takes it"
        assert name[0] not in ".-"
    assert (cell_name(first) == cell_name(second)) == (sorted(first) == sorted(second))


def test_a_cell_name_is_readable():
    assert cell_name(["strategy.k=96", "init=svd"]).startswith("init-svd_k-96-")
    assert cell_name([]) == "default"


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ("experiments=small/table02_zero_shot", ["experiments=table02_zero_shot", "scale=small"]),
        ("experiments=paper/table02_zero_shot", ["experiments=table02_zero_shot"]),
        ("experiments=bench/gpu", ["experiments=bench_gpu"]),
    ],
)
def test_a_cell_keeps_the_folder_that_it_has_from_when_a_scale_was_a_word_of_its_own(now, before, tmp_path):
    cell = ["model=phi2", "seed=1"]
    own = cell_name([now, *cell], tmp_path)
    (tmp_path / cell_name([*before, *cell])).mkdir()
    assert cell_name([now, *cell], tmp_path) == cell_name([*before, *cell]) != own
    (tmp_path / own).mkdir()
    assert cell_name([now, *cell], tmp_path) == own


def name_of_earlier_versions(overrides):
    """``init=svd,k=96-1f0c93a2``."""
    parts = [override.partition("=") for override in sorted(overrides)]
    short = ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in parts)
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._,=+-]+', '_', short)[:100].strip('._')}-{digest}"


def test_a_cell_under_the_name_of_an_earlier_version_is_found(cli, tmp_path, capsys):
    """By the sweep, which does not run it again, and by the report."""
    words = (*TINY_RUN, "stages=[plan]", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert cli("-m", *words)[0] == 0
    assert len(cells(tmp_path)) == 2
    for cell in cells(tmp_path):
        cell.folder.rename(tmp_path / name_of_earlier_versions(cell.result["overrides"]))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/results.json")}
    status, _, err = cli("-m", *words)
    assert status == 0
    assert err.count("already done") == 2
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/results.json")} == before
    capsys.readouterr()
    assert report([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" done ") == 2


def test_a_folders_name_is_taken_by_hydra(cli, tmp_path):
    words = ("model=tiny_random", "stages=[plan]")
    assert cli("-m", *words, "strategy=uniform", "strategy.reduction=0.2,0.3", f"hydra.sweep.dir={tmp_path}")[0] == 0
    plan = cells(tmp_path)[1].folder / "plan.json"
    status, _, err = cli(*words, "strategy=plan", f"strategy.file={plan}", f"hydra.run.dir={tmp_path / 'again'}")
    assert status == 0, err
    assert read_json(tmp_path / "again" / "plan.json")["ranks"] == read_json(plan)["ranks"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy=nonsense"], ["strategy/nonsense", "bottom", "top", "uniform"]),
        (["strategy.raito=0.3"], ["raito", "reduction", "parameters"]),
        (["loss.distance=nonsense"], ["loss.distance", "l1_cosine", "mse", "normalized_mse"]),
        (["strategy.reduction=many"], ["strategy.reduction", "many"]),
        (["strategy.reduction=1.5"], ["strategy.reduction=1.5", "between 0 and 1"]),
        (["strategy.reduction=0.99"], ["strategy.reduction=0.99", "largest possible is"]),
        (["strategy=bottom", "strategy.k=5000"], ["strategy.k=5000"]),
        (["data.tokens=-1"], ["data.tokens=-1"]),
        (["data.tokens=999999999"], ["data.tokens=999999999", "holds only"]),
        (["data=local", "data.path=/no/such/file.jsonl"], ["data.path=/no/such/file.jsonl", "no such file"]),
        (["data=local"], ["data.path"]),
        (["model=hub", "model.path=/no/such/model"], ["model.path=/no/such/model"]),
        (["model.targets.include=[q_proj,nowhere]"], ["model.targets.include", "'nowhere' matches nothing", "q_proj"]),
        (["model.targets.exclude=[nowhere]"], ["model.targets.exclude", "'nowhere' matches nothing"]),
        (["model=tiny_random", "strategy.scope=decoder"], ["strategy.scope=decoder", "the model has no decoder"]),
        (["strategy=rank"], ["strategy.rank=1024", "saves parameters in no matrix"]),
        (["model=whisper_medium_en", "model.weights=random"], ["speech_seq2seq", "stages=[plan, init, distill]"]),
        (["model=whisper_medium_en", "model.weights=random", "stages=[init,distill]"], ["data.source", "needs speech"]),
        (["model=tiny_t5", "data=speech", "data.path=x"], ["data.source=speech", "needs a text"]),
        (["model.dtype=float16"], ["model.dtype=float16"]),
        (["model=tiny_t5", "model.task=causal_lm"], ["tiny_t5: cannot be made as causal_lm"]),
        (["model.architecture.hidden_size=50"], ["model.architecture", "hidden size (50)"]),
        (["stages=[nonsense]"], ["plan", "init", "distill", "perplexity"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_bad_input_is_one_line_with_status_2_before_a_model_is_loaded(words, said, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    fitting = [word for word in TINY_RUN if not (word.startswith(("strategy", "model=")) and _sets(words, word))]
    status, _, err = cli(*fitting, *words, f"hydra.run.dir={tmp_path}")
    assert status == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert len([line for line in err.splitlines() if line.strip() and " INFO " not in line]) == 1, err
    for word in said:
        assert word in errors[0]


def _sets(words, default):
    """Whether the words choose another option of the group, so that the default would not fit."""
    group = default.partition("=")[0].partition(".")[0]
    return any(word.startswith(f"{group}=") for word in words) or (
        default.startswith("strategy") and any(word.startswith("strategy.reduction") for word in words)
    )


@pytest.mark.long
def test_no_librarys_warning_comes_before_it(tmp_path):
    """In a process of its own, which imports them: torchao says what kernels it lacks, transformers imports it."""
    words = ["model=hub", "model.path=/nowhere", "logger=none", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, str(ROOT / "run.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: model.path=/nowhere: no such file or folder\n"


def test_the_command_line_leaves_pytests_capture_open(cli):
    """Whichever test imports absl first (lm_eval does): Hydra closes absl's handler, and that closes its stream."""
    handler = pytest.importorskip("absl.logging").get_absl_handler().python_handler
    handler.stream = file = io.StringIO()
    assert cli("--help")[0] == 0
    assert cli("model=tiny_random", "strategy.k=-3")[0] == 2
    assert not file.closed


@pytest.mark.parametrize("text", ["hydra: {}\njob: mine\n", "- a list\n", "{ no yaml", "\0"])
def test_another_programs_sweep_is_not_written_over(text, cli, tmp_path):
    (tmp_path / "multirun.yaml").write_text(text)
    status, _, err = cli("-m", *TINY_RUN, "stages=[plan]", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert status == 2
    assert f"error: hydra.sweep.dir={tmp_path}: holds another program's multirun.yaml" in err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("multirun.yaml", text)]


def test_help_reads_like_a_manual(cli):
    status, out, _ = cli("--help")
    assert status == 0
    for word in ("USAGE", "EXAMPLES", "strategy: bottom", "data.tokens", "Exit status", "lillama report"):
        assert word in out


def test_an_output_folder_that_cannot_be_made_is_bad_input(cli, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = cli(*TINY_RUN, f"hydra.run.dir={tmp_path / 'file'}")
    assert status == 2
    assert "hydra.run.dir" in err
    assert "Traceback" not in err


def test_another_error_is_status_1_and_tells_where(cli, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(lillama.run.pipeline, "start_factors", fail)
    status, _, err = cli(*TINY_RUN, f"hydra.run.dir={tmp_path}")
    assert status == 1
    assert "something else" in err
    assert "Traceback" in err


def test_a_failed_cell_of_a_sweep_keeps_no_model_alive_and_the_others_run(cli, tmp_path, monkeypatch):
    alive = []
    original = ModelSource.load

    def load(source, **options):
        model = original(source, **options)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(ModelSource, "load", load)
    original_start = lillama.run.pipeline.start_factors

    def start(teacher, ranks, data, config, **options):
        if type(config).__name__ == "SvdConfig":
            raise RuntimeError("svd is broken today")
        gc.collect()
        assert sum(ref() is not None for ref in alive) == 1, "only this cell's model is in memory"
        return original_start(teacher, ranks, data, config, **options)

    monkeypatch.setattr(lillama.run.pipeline, "start_factors", start)
    status, out, err = cli("-m", *TINY_RUN, "init=svd,feature,random", f"hydra.sweep.dir={tmp_path}")
    assert status == 1
    assert "1 cells of the sweep failed" in err
    assert "svd is broken today" in err
    assert out.count("perplexity end") == 2
    gc.collect()
    assert not any(ref() for ref in alive)
