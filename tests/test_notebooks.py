import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, TINY_RUN

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(path, cli, tmp_path, monkeypatch):
    status, _, err = cli(*TINY_RUN, f"hydra.run.dir={tmp_path}")
    assert status == 0, err
    monkeypatch.setenv("LILLAMA_RUN", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown = str(notebook.cells)
    assert "perplexity end" in shown
    assert "image/png" in shown
