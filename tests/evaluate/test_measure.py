"""A measure that nobody has heard of is read before a model is loaded, measured for each, drawn and kept."""

from dataclasses import dataclass

import pytest

from lillama.config import SamplesConfig, option
from lillama.core.errors import ConfigError
from lillama.core.outputs import STABLE_RANK_CHART
from lillama.evaluate.measure import Measure
from lillama.model.source import ModelSource
from lillama.report.tables import measured_tables
from lillama.run.pipeline import run
from tests.conftest import TINY_RUN, composed

WORDS = (*TINY_RUN, "stages=[plan,init,samples]", "evaluate.samples.prompts=[one]")


@dataclass(frozen=True)
class Parameters(Measure):
    limit: int

    CHART = STABLE_RANK_CHART

    @classmethod
    def read(cls, given):
        if given.config.samples.prompts == ["refused"]:
            raise ConfigError("evaluate.samples: refused")
        return cls(given.limits.tokens)

    def measure(self, model, *, dense, note):
        count = sum(parameter.numel() for parameter in model.parameters())
        note({"count": count})
        found = {"count": count, "tokens": self.limit, "kind": "text"}
        return found if dense is None else found | {"share": count / dense["count"]}

    def draw(self, measured, file, *, title):
        file.write_text(f"{title}: {', '.join(measured)}")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(option.METHODS, SamplesConfig, f"{__name__}:Parameters")


def test_it_is_measured_beside_the_dense_model_and_drawn(tmp_path):
    result = run(composed(*WORDS), tmp_path)
    dense, compressed = (result["measured"]["samples"][role] for role in ("dense", "compressed"))
    counts = result["parameters"]
    assert (dense["count"], compressed["count"]) == (counts["dense"], counts["compressed"])
    assert compressed["share"] == compressed["count"] / dense["count"] < 1
    assert (tmp_path / STABLE_RANK_CHART).read_text().endswith("dense, compressed")
    (table,) = measured_tables(result["measured"] | {"another": result["measured"].pop("samples")})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows[0] == ["figure", "dense", "compressed"]
    assert [row[0] for row in rows[2:]] == ["count", "tokens", "share"]
    assert rows[-1][1] == "MISSING"


def test_what_it_refuses_shows_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=r"evaluate\.samples: refused"):
        run(composed(*WORDS, "evaluate.samples.prompts=[refused]"), tmp_path)
