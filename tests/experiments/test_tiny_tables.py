"""Every experiment of a table of the paper runs, all its cells, on random models; its report is then complete.

One is run with every change: Table 8 has a curve and scores. The others are long.
"""

import pytest

from lillama.config.compose import experiment_names

NAMES = [name.partition("/")[2] for name in experiment_names() if name.startswith("tiny/table")]
SHORT = ("table08_losses",)


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_all_cells_run_and_the_report_is_complete(name, run_all):
    run_all(name)
