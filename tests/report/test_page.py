"""The page of all experiments: what stands on it, and that a browser shows it without a complaint."""

import re
from html.parser import HTMLParser

import pytest

from lillama.report.__main__ import main
from lillama.report.counts import counts
from lillama.report.experiment import Places
from lillama.report.overview import reported
from lillama.report.page import page
from tests.report.browser import browser_programs, open_page
from tests.report.sweeps import texts, write_cell, zero_shot

NAME = "table11_ratios"
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
VOID = {"meta", "link", "img", "input", "br"}


class Tags(HTMLParser):
    """The tags of a page; complains where one closes that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A cell done and one failed with a hostile message at the small scale, one out of memory at the paper's."""
    outputs = tmp_path_factory.mktemp("outputs")
    measured = {
        "zero_shot": {"dense": zero_shot(0.5), "compressed": zero_shot(0.4)},
        "samples": {"dense": texts("fell"), "compressed": texts(HOSTILE)},
    }
    small = [["model=smollm2_135m", f"strategy.reduction={cut}"] for cut in ("0.2", "0.25")]
    write_cell(outputs, f"{NAME}/small", small[0], measured=measured)
    write_cell(outputs, f"{NAME}/small", small[1], status="failed", error=HOSTILE)
    oom = {"status": "failed", "error": "DeviceMemoryError: lower it"}
    write_cell(outputs, f"{NAME}/paper", ["model=phi2", "strategy.reduction=0.2"], **oom)
    return Places(outputs, outputs / "none")


@pytest.fixture(scope="module")
def found(places):
    return list(reported([NAME, "table08_losses"], places))


@pytest.fixture(scope="module")
def text(found):
    return page(found)


def test_the_page_is_whole_and_needs_no_network(text):
    tags = Tags(text)
    assert tags.open == []
    assert not [tag for tag, _ in tags.seen if tag in ("iframe", "object", "embed")]
    assert all(own.get("src", "data:").startswith("data:") for _, own in tags.seen)
    assert [own["href"] for tag, own in tags.seen if tag == "link"] == ["data:,"]
    assert "@import" not in text
    assert "url(" not in text


def test_hostile_words_stand_as_text(text):
    tags = Tags(text)
    assert [tag for tag, _ in tags.seen].count("script") == 1
    assert not any("onerror" in own for _, own in tags.seen)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_ids_are_of_one_element_and_links_lead_to_them(text):
    tags = Tags(text)
    ids = [own["id"] for _, own in tags.seen if "id" in own]
    assert len(ids) == len(set(ids))
    links = [own["href"][1:] for tag, own in tags.seen if tag == "a" and own["href"].startswith("#")]
    assert links
    assert set(links) <= set(ids)


def test_counts_are_of_the_cells_that_the_page_shows(found, text):
    small = next(one for one in found[0].scales if one.scale == "small")
    known = counts(small.tables)
    assert (known["measured"], known["FAILED"], known["OOM"]) == (
        21,
        12,
        0,
    )  # two rows of ten scores; dense, removed: 0
    shown = [own["data-kind"] for tag, own in Tags(text).seen if tag == "td" and "data-kind" in own]
    for kind in ("measured", "FAILED", "OOM", "MISSING"):
        assert shown.count(kind) == sum(counts(one.tables)[kind] for every in found for one in every.scales)


def test_nothing_is_filled_in_at_a_scale_that_was_not_run(found):
    for one in found[1].scales:
        assert counts(one.tables)["measured"] == 0
    assert {one.scale for one in found[1].scales} == {"paper", "small"}


def test_the_command_writes_the_page_and_counts(places, tmp_path, capsys):
    file = tmp_path / "new" / "page.html"
    where = ["--outputs", str(places.outputs), "--results", str(places.frozen)]
    assert main([NAME, "--html", str(file), *where]) == 0
    assert Tags(file.read_text(encoding="utf-8")).open == []
    line = capsys.readouterr().out.splitlines()[0]
    assert re.match(rf"{NAME}: paper: 0 measured, \d+ MISSING, 0 FAILED, \d+ OOM.*; small: 21 measured", line)


@pytest.mark.long
@pytest.mark.skipif(browser_programs() is None, reason="no Chromium with chromedriver")
def test_a_browser_shows_it_and_switches_scales(text, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    visible = "return [...document.querySelectorAll('.scale')].filter((one) => one.offsetParent).map((one) => one.id)"
    with open_page(file, tmp_path / "profile") as opened:
        scales = opened.run(visible)
        assert f"{NAME}--paper" in scales
        opened.run("document.querySelector('input[value=small]').click()")
        assert opened.run(visible) == [f"{NAME}--small", "table08_losses--small"]
        choose = "const kind = document.getElementById('kind'); kind.value = 'FAILED';"
        opened.run(f"{choose} kind.dispatchEvent(new Event('change', {{bubbles: true}}))")
        rows = "return [...document.querySelectorAll('.result tbody tr')].filter((row) => row.offsetParent)"
        found = opened.run(f"{rows}.map((row) => row.dataset.kinds)")
        assert found
        assert all("FAILED" in kinds for kinds in found)
        opened.run(f"location.hash = '#{NAME}--paper'")
        opened.run("window.dispatchEvent(new Event('hashchange'))")
        assert opened.run(visible) == scales
        assert opened.console() == []
