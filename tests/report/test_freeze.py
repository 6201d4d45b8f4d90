"""Results that are kept with the code."""

from lillama.config.compose import experiment_sweep
from lillama.core.results import RunResult, read_json, write_json
from lillama.report.experiment import Places, experiment_cells
from lillama.report.freeze import freeze, without_places


def result(*overrides, status="done"):
    known = {"fingerprint": "f", "name": "n", "settings": {"data": {"path": "/home/me/texts/a.jsonl"}}}
    return RunResult(status=status, overrides=list(overrides), provenance={"started": "2026"}, **known).as_dict()


def test_cells_that_are_done_are_kept_and_found_again(tmp_path):
    folder = tmp_path / "outputs" / "open_inits" / "small"
    for number, (init, status) in enumerate([("svd", "done"), ("random", "failed")]):
        (folder / str(number)).mkdir(parents=True)
        overrides = (f"init={init}", "model=smollm2_135m", "cache_dir=/home/me/cache")
        write_json(folder / str(number) / "results.json", result(*overrides, status=status))
    files = freeze("open_inits", "small", outputs=tmp_path / "outputs", frozen=tmp_path / "frozen")
    assert [file.name for file in files] == ["model=smollm2_135m,init=svd.json"]
    kept = read_json(files[0])
    assert kept["settings"]["data"]["path"] == "a.jsonl"
    assert "/home" not in files[0].read_text()
    cells = experiment_cells(experiment_sweep("small/open_inits"), Places(tmp_path / "none", tmp_path / "frozen"))
    assert {cell.overrides["init"]: cell.status for cell in cells} == {
        "svd": "done",
        **dict.fromkeys(("random", "svd_symmetric", "feature"), "MISSING"),
    }


def test_only_places_are_cut():
    value = {"a": ["/x/y", "n=/x/z", "k=1/2", "org/name"], "b": {"c": "~/q", "d": 1.5, "e": None}}
    assert without_places(value) == {"a": ["y", "n=z", "k=1/2", "org/name"], "b": {"c": "q", "d": 1.5, "e": None}}
