"""All experiments on one HTML page that needs nothing beside it: style, script and pictures are inside."""

import time
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lillama.core.half_written import whole
from lillama.report.counts import COUNTED
from lillama.report.entries import PAPER_ONLY
from lillama.report.overview import Reported
from lillama.report.view import experiment_view

TEMPLATES = Path(__file__).parent / "templates"


def page(found: Sequence[Reported]) -> str:
    """Return the page as text; whatever the results hold stands on it as text too, never as markup."""
    # Style and script are part of the template: they are included, not filled in.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        experiments=[experiment_view(one) for one in found],
        scales=sorted({found.scale for one in found for found in one.scales}),
        counted=COUNTED,
        kinds=[*COUNTED, PAPER_ONLY],
        written=time.strftime("%Y-%m-%d %H:%M"),
    )


def write_page(found: Sequence[Reported], file: Path) -> None:
    """Write the page whole, or leave the one before; folders on the way are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as temporary:
        temporary.write_text(page(found), encoding="utf-8")
