"""Whole runs on a random model: what a folder holds, resuming, sweeps, interruptions, devices of bad luck."""

import csv
import json
import shutil
import signal

import pytest
import torch
import yaml

import lillama.run.pipeline
import lillama.run.supply
from lillama import load_checkpoint
from lillama.core.errors import DeviceMemoryError
from lillama.core.results import read_json, read_result
from lillama.evaluate.perplexity import measured_text, perplexity
from lillama.model.byte_tokenizer import byte_tokenizer
from lillama.model.source import ModelSource
from lillama.report.__main__ import main as report
from lillama.run.folder import alone
from lillama.run.recording import following
from tests.conftest import TINY_RUN, composed
from tests.forks import CommandLine
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A place for the finished run, and what it printed."""
    return tmp_path_factory.mktemp("finished"), []


@pytest.fixture
def finished_run(cli, kept):
    """Run once for all tests; each finds the folder as the run left it."""
    (place, printed), folder = kept, kept[0] / "run"
    words = (*TINY_RUN, "evaluate.every_tokens=512", f"hydra.run.dir={folder}")
    if not printed:
        status, out, err = cli(*words)
        assert status == 0, err
        printed.append(out)
        shutil.copytree(folder, place / "as it was")
    shutil.rmtree(folder)
    shutil.copytree(place / "as it was", folder)
    return folder, printed[0], words


def test_a_runs_folder_holds_what_was_promised(finished_run):
    folder, out, _ = finished_run
    names = {path.name for path in folder.iterdir()}
    assert {"results.json", "plan.json", "curve.csv", "curve.png", "checkpoint", "config.yaml", "metrics.csv"} <= names
    assert not [name for name in names if "partial" in name]
    result, plan = read_json(folder / "results.json"), read_json(folder / "plan.json")
    assert result["status"] == "done"
    assert result["error"] is None
    chosen = {"preset": "local", "model": "tiny_random", "init": result["choices"]["init"], "factors": "plain"}
    assert result["choices"].items() >= chosen.items(), "what tells two runs apart"
    assert not [group for group in result["choices"] if group.startswith("hydra")]
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {"choices": result["choices"], **result["settings"]}
    assert result["tokens"] == result["data"]["tokens"] == 1024
    assert result["data"]["skipped_rows"] == result["data"]["perplexity_skipped_rows"] == 0
    assert set(result["seconds"]) == {"plan", "data", "load", "init", "distill", "perplexity", "save"}
    assert all(value >= 0 for value in result["seconds"].values())
    assert result["peak_memory"] > 2**20
    assert result["provenance"]["versions"]["torch"] == torch.__version__
    assert len(result["provenance"]["git"]["revision"]) == 40
    assert len(result["fingerprint"]) == len(result["data"]["hash"]) == 64
    assert plan["parameters"] == result["parameters"]["compressed"]
    assert (plan["blocks"], plan["matrices"]) == (result["blocks"], result["matrices"])
    assert len(plan["ranks"]) == plan["matrices"]
    for figure in ("perplexity dense", "perplexity start", "perplexity end", "20.", "checkpoint"):
        assert figure in out


def test_invalid_rows_are_refused_before_a_model_is_loaded_or_skipped_and_counted(cli, tmp_path, monkeypatch):
    file, folder = tmp_path / "rows.ndjson", tmp_path / "run"
    rows = [json.dumps({"text": f"row {number} " + "word " * 30}) for number in range(30)]
    file.write_text("\n".join([*rows, '{"text": null}', '{"text": "half \\ud83d"}']))
    words = (*TINY_RUN, "data=local", f"data.path={file}", f"hydra.run.dir={folder}", "stages=[plan,init]")
    with monkeypatch.context() as patch:
        patch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("loaded"))
        status, _, err = cli(*words)
    assert status == 2
    assert f"data.path={file}: line 31: needs text" in err
    status, _, err = cli(*words, "data.invalid_rows=skip")
    assert status == 0, err
    data = read_json(folder / "results.json")["data"]
    assert (data["skipped_rows"], data["replaced_characters"]) == (1, 1)


def test_the_curve_runs_from_the_start_to_the_end(finished_run):
    folder, _, _ = finished_run
    result = read_json(folder / "results.json")
    with (folder / "curve.csv").open() as file:
        rows = [(int(row["tokens"]), float(row["perplexity"])) for row in csv.DictReader(file)]
    assert [tokens for tokens, _ in rows] == [0, 512, 1024]
    assert rows[0][1] == result["perplexity"]["start"]
    assert rows[-1][1] == result["perplexity"]["end"]
    assert [list(row) for row in rows] == result["curve"]


def test_the_checkpoint_is_the_student_that_was_measured(finished_run):
    folder, _, words = finished_run
    result = read_json(folder / "results.json")
    model = load_checkpoint(folder / "checkpoint", dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]["compressed"]
    config = composed(*(word for word in words if not word.startswith("hydra")))
    ids = measured_text(config.evaluate.perplexity, byte_tokenizer()).ids
    assert perplexity(model, ids, seq_len=64) == pytest.approx(result["perplexity"]["end"], rel=1e-5)
    card = (folder / "checkpoint" / "README.md").read_text()
    assert f"{result['perplexity']['end']:.2f}" in card


def test_a_finished_run_is_not_run_again(finished_run, cli, monkeypatch):
    folder, out, words = finished_run
    monkeypatch.setattr(lillama.run.pipeline, "agreed_plan", lambda *_: pytest.fail("it was run again"))
    before = (folder / "results.json").read_bytes()
    status, again, _ = cli(*words, "progress=false", "name=other", "logger=none")
    assert status == 0
    assert again == out
    assert (folder / "results.json").read_bytes() == before


def test_a_folder_that_holds_another_run_is_refused(finished_run, cli):
    folder, _, words = finished_run
    before = (folder / "results.json").read_bytes()
    status, _, err = cli(*words, "distill.lr=1e-3")
    assert status == 2
    assert "holds another run" in err
    assert (folder / "results.json").read_bytes() == before


def test_a_refused_run_leaves_the_report_of_the_finished_one_as_it_was(finished_run, cli, capsys):
    folder, _, words = finished_run
    assert cli(*words, "distill.lr=7e-3")[0] == 2
    assert report([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "0.007" not in shown
    assert "7e-3" not in shown


def test_a_checkpoint_that_was_not_asked_for_before_is_made_when_it_is(cli, tmp_path):
    words = (*TINY_RUN, f"hydra.run.dir={tmp_path}")
    assert cli(*words, "save_checkpoint=false")[0] == 0
    assert not (tmp_path / "checkpoint").exists()
    assert cli(*words)[0] == 0
    assert (tmp_path / "checkpoint" / "config.json").is_file()


def test_the_kept_weights_are_the_measured_ones(cli, tmp_path):
    """The last point of the curve falls on a mark, and the weights that are kept are not the last."""
    words = [*TINY_RUN, "distill=authors_code", "distill.lr=0.05", "distill.batch_size=1", "evaluate.every_tokens=512"]
    assert cli(*words, f"hydra.run.dir={tmp_path}")[0] == 0
    end = read_json(tmp_path / "results.json")["perplexity"]["end"]
    model = load_checkpoint(tmp_path / "checkpoint", dtype=torch.float32)
    ids = measured_text(composed(*TINY_RUN).evaluate.perplexity, byte_tokenizer()).ids
    assert perplexity(model, ids, seq_len=64) == pytest.approx(end, rel=1e-5)


def test_metrics_name_every_block(finished_run):
    folder, _, _ = finished_run
    with (folder / "metrics.csv").open() as file:
        names = {row["metric"] for row in csv.DictReader(file)}
    blocks = read_json(folder / "plan.json")["block_indices"]
    losses = {f"loss/block_{index:03d}" for index in blocks}
    assert losses | {"loss/mean", "lr", "tokens_per_second", "perplexity", "peak_memory"} == names


def test_a_plan_alone_needs_no_model_and_no_data(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    words = ("stages=[plan]", "model=mixtral_8x7b", "strategy=bottom", "data=local", "data.path=/nowhere")
    status, out, err = cli(*words, f"hydra.run.dir={tmp_path}")
    assert status == 0, err
    assert "46,702,792,704" in out
    assert read_json(tmp_path / "plan.json")["parameters"] <= 0.8 * 46_702_792_704
    assert read_json(tmp_path / "results.json")["perplexity"] == {}
    assert "experts.gate_up_proj" in out, "the plan is shown"


def test_stages_may_be_left_out(cli, tmp_path):
    status, _, err = cli(*TINY_RUN, "stages=[init,perplexity]", "init=svd", f"hydra.run.dir={tmp_path}")
    assert status == 0, err
    result = read_json(tmp_path / "results.json")
    assert result["tokens"] == 0
    assert result["perplexity"]["start"] == result["perplexity"]["end"]
    assert "distill" not in result["seconds"]
    assert "hash" not in result["data"], "an SVD start without distillation needs no calibration text"


def test_the_paper_and_the_authors_presets_run(cli, tmp_path):
    for preset in ("paper", "authors_code"):
        words = [word for word in TINY_RUN if not word.startswith(("strategy=", "preset="))]
        fit = ["data=stdlib_docs", "evaluate/perplexity=stdlib_docs", "evaluate.every_tokens=0"]
        status, _, err = cli(f"preset={preset}", *words, *fit, f"hydra.run.dir={tmp_path / preset}")
        assert status == 0, err
        assert read_json(tmp_path / preset / "results.json")["status"] == "done"


def test_an_interrupted_run_leaves_a_valid_folder_and_starts_again(cli, tmp_path):
    """A real Ctrl-C, in the middle of the distillation."""
    words = (*TINY_RUN, "data.tokens=4096", f"hydra.run.dir={tmp_path / 'run'}")
    process = CommandLine(*words)
    curve = tmp_path / "run" / "curve.csv"
    wait_for(lambda: curve.exists() or process.poll() is not None, "the first point")
    process.send_signal(signal.SIGINT)
    assert process.wait() == 1
    assert process.err.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in process.err
    result = read_json(tmp_path / "run" / "results.json")
    assert (result["status"], result["checkpoint"]) == ("interrupted", None)
    assert not list(tmp_path.rglob("*partial*"))
    status, _, _ = cli(*words)
    assert status == 0
    assert read_json(tmp_path / "run" / "results.json")["status"] == "done"


def test_a_loss_that_is_not_finite_ends_as_a_failure_and_without_a_checkpoint(cli, tmp_path):
    words = [word for word in TINY_RUN if not word.startswith("strategy")]
    status, _, err = cli(
        *words, "distill.lr=1e30", "distill.warmup=0", "distill.batch_size=1", f"hydra.run.dir={tmp_path}"
    )
    assert status == 1
    assert "DivergedError" in err
    result = read_json(tmp_path / "results.json")
    assert result["status"] == "failed"
    assert "Diverged" in result["error"]
    assert not (tmp_path / "checkpoint").exists()


def test_an_experiments_own_sweep_is_reported_whole(cli, tmp_path, capsys):
    """Its cells stand in the YAML, not on the command line."""
    status, _, err = cli("experiments=tiny/figure5_starts", f"hydra.sweep.dir={tmp_path}")
    assert status == 0, err
    assert report([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(" done ") == 3


SWEEP = ("strategy.k=6,8", "init=svd,feature")


def sweep_words(folder):
    fitting = [word for word in TINY_RUN if word != "strategy.k=8"]
    return ("-m", *fitting, *SWEEP, "save_checkpoint=false", f"hydra.sweep.dir={folder}")


def done_cells(folder):
    """The finished cells of a sweep, and when each was written."""
    files = folder.glob("*/results.json")
    return {file: file.stat().st_mtime_ns for file in files if (read_result(file.parent) or {}).get("status") == "done"}


def test_a_killed_sweep_redoes_only_what_was_not_finished(tmp_path, capsys):
    """Four cells, SIGKILL in the middle, the same command again."""
    environment = {"LILLAMA_CACHE": str(tmp_path / "cache")}
    folder = tmp_path / "sweep"
    process = CommandLine(*sweep_words(folder), env=environment)
    wait_for(lambda: len(done_cells(folder)) >= 2 or process.poll() is not None, "two cells", lambda: process.err)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.err[-2000:]
    first = done_cells(folder)
    assert 2 <= len(first) < 4
    assert report([str(folder)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("MISSING") + shown.count("RUNNING") == 4 - len(first)
    again = CommandLine(*sweep_words(folder), env=environment)
    assert again.wait() == 0, again.err[-2000:]
    second = done_cells(folder)
    assert len(second) == 4
    assert all(second[path] == stamp for path, stamp in first.items()), "finished cells were not touched"
    assert again.err.count("already done") == len(first)
    assert report([str(folder)]) == 0
    table = capsys.readouterr().out
    assert table.count(" done ") == 4
    for column in ("strategy.k", "init", "start", "end"):
        assert column in table.splitlines()[0]


def test_the_same_seed_gives_the_same_figures(cli, tmp_path):
    for name in ("a", "b"):
        assert cli(*TINY_RUN, f"hydra.run.dir={tmp_path / name}")[0] == 0
    first, second = (read_json(tmp_path / name / "results.json") for name in ("a", "b"))
    assert first["curve"] == second["curve"]
    assert first["fingerprint"] == second["fingerprint"]
    assert json.dumps(first["settings"]) == json.dumps(second["settings"])


def test_a_compressed_model_is_not_compressed_again(cli, finished_run, tmp_path):
    folder, _, _ = finished_run
    words = [word for word in TINY_RUN if not word.startswith("model=")]
    status, _, err = cli(*words, "model=hub", f"model.path={folder / 'checkpoint'}", f"hydra.run.dir={tmp_path / 'x'}")
    assert status == 2
    assert "is compressed already" in err


def test_a_second_process_on_one_folder_refuses(cli, finished_run):
    folder, _, words = finished_run
    with alone(folder):
        status, _, err = cli(*words)
    assert status == 2
    assert f"hydra.run.dir={folder}: another process is at work" in err
    assert cli(*words)[0] == 0, "and when that one is gone it goes on"


def test_a_cell_whose_text_is_not_there_is_reported_as_failed(cli, tmp_path, capsys):
    """And finished results of other runs are never written over."""
    words = (*TINY_RUN, "data=local", "data.path=/no/such/text", "save_checkpoint=false")
    status, _, err = cli("-m", *words, "strategy.k=8,16", f"hydra.sweep.dir={tmp_path}")
    assert status == 2, err
    results = [read_json(file) for file in sorted(tmp_path.glob("*/results.json"))]
    assert [result["status"] for result in results] == ["failed", "failed"]
    assert all("/no/such/text" in result["error"] for result in results)
    capsys.readouterr()
    assert report([str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "FAILED" in told
    assert "MISSING" not in told


def test_a_stage_without_device_memory_says_what_to_lower(tmp_path):
    with following(composed(*TINY_RUN), tmp_path) as record:
        told = pytest.raises(DeviceMemoryError, match=r"stage perplexity: lower evaluate\.perplexity\.batch_size")
        with told, record.stage("distill"), record.stage("perplexity"):
            raise torch.OutOfMemoryError("no memory left")
        assert set(record.result.seconds) == {"distill", "perplexity"}
