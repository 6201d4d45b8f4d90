"""Set out what was measured as markdown tables, for a terminal and a report: a module a stage. Needs no torch."""

from collections.abc import Callable, Mapping
from typing import Any

from lillama.config import Stage
from lillama.report.tables.domains import domains_table
from lillama.report.tables.figures import figures_table
from lillama.report.tables.samples import samples_table
from lillama.report.tables.stable_rank import stable_rank_table
from lillama.report.tables.throughput import throughput_table
from lillama.report.tables.wer import wer_table
from lillama.report.tables.zero_shot import zero_shot_table

Measured = Mapping[str, Any]  # a stage's part of ``results.json``: by role, dense and compressed, what was found

TABLES: dict[str, Callable[[Measured], str]] = {
    Stage.zero_shot.name: zero_shot_table,
    Stage.throughput.name: throughput_table,
    Stage.wer.name: wer_table,
    Stage.samples.name: samples_table,
    Stage.stable_rank.name: stable_rank_table,
    Stage.domains.name: domains_table,
}


def measured_tables(measured: Mapping[str, Measured]) -> list[str]:
    """Return a table for every stage that has measured something, each under its name."""
    return [
        f"{stage.replace('_', ' ')}\n\n{TABLES.get(stage, figures_table)(found)}"
        for stage, found in measured.items()
        if found
    ]
