"""Every other experiment runs, all its cells, on random models; its report is then complete.

Benchmarks have tests of their own.
"""

import pytest

from lillama.config.compose import experiment_names

pytestmark = pytest.mark.long


NAMES = [name.partition("/")[2] for name in experiment_names() if name.startswith("tiny/")]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("table")])
def test_all_cells_run_and_the_report_is_complete(name, run_all):
    run_all(name)
