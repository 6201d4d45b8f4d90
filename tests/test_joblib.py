"""A sweep whose cells run side by side in processes of this machine gives what one after the other gives."""

import pytest

from lillama.report.__main__ import main
from lillama.report.cells import cells
from tests.checkpoints import same, weights
from tests.conftest import TINY_RUN
from tests.forks import CommandLine

pytestmark = pytest.mark.long
pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra joblib is not installed")


def swept(folder, *words):
    """Run the sweep in a fork; the processes of the launcher are its own, and new."""
    done = CommandLine("-m", *TINY_RUN, "seed=0,1", f"hydra.sweep.dir={folder}", *words)
    return done.wait(), done.err


def test_two_cells_at_a_time_give_what_one_after_the_other_gives(cli, tmp_path):
    status, said = swept(tmp_path / "two", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert status == 0, said
    assert "Joblib.Parallel(n_jobs=2" in said, "it was this launcher"
    assert main([str(tmp_path / "two")]) == 0
    status, _, said = cli("-m", *TINY_RUN, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'one'}")
    assert status == 0, said
    pairs = list(zip(cells(tmp_path / "one"), cells(tmp_path / "two"), strict=True))
    assert len(pairs) == 2
    for one, two in pairs:
        assert one.result["curve"] == two.result["curve"]
        assert same(weights(two.folder), weights(one.folder))
