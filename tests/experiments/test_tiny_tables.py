"""Every experiment of a table of the paper runs, all its cells, on random models; its report is then complete."""

import pytest

from lillama.config.compose import experiment_names

NAMES = [name.partition("/")[2] for name in experiment_names() if name.startswith("tiny/table")]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_all_cells_run_and_the_report_is_complete(name, run_all):
    run_all(name)
