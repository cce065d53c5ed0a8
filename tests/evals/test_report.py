import html.parser
import re

import pytest

from vlalign.errors import UserError
from vlalign.evals.base import Estimate
from vlalign.evals.curves import Line, chart, smooth
from vlalign.evals.html import Html, element, image, join
from vlalign.evals.pictures import Hit, Sheet, SheetRow
from vlalign.evals.report import Content, report_from_run, write_report
from vlalign.evals.results import write_results


class Checker(html.parser.HTMLParser):
    """Collects tags and outside addresses; fails on tags that are not closed in order."""

    VOID = ("img", "meta", "br", "path", "use")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        for name in ("src", "href", "xlink:href", "action"):
            self.addresses += [values[name]] if name in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    inside = {"#" + name for name in checker.ids}
    for address in checker.addresses:
        assert address.startswith("data:image/") or address in inside, address
    assert not re.search(r"url\((?!#)|@import", text)
    return checker


def test_the_report_of_a_run_is_one_whole_file(fake_run):
    said = []
    path = report_from_run(fake_run, said.append)
    text = path.read_text(encoding="utf-8")
    page = check(text)
    assert path == fake_run.path / "report.html"
    assert said == ["reading metrics", "drawing seen", "drawing unseen"]
    assert page.tags.count("img") == 12 * 8 + 9 * 8
    assert page.tags.count("svg") == 3  # loss, recall of `seen`, throughput
    words = " ".join(page.text)
    for expected in ("shapes", "seen", "50.0 %", "jax", "0.10.2", "worst", 'name = "<shapes> &'):
        assert expected in words
    assert "<shapes>" not in text


def test_stored_results_replace_those_of_the_metrics_unless_they_are_older(fake_run):
    stored = {"seen": {"t2i_recall@5": Estimate(0.75, 0.7, 0.8, 18)}}
    write_results(fake_run.path / "evals.json", 20, stored)
    assert "75.0 %" not in report_from_run(fake_run).read_text()
    (fake_run.path / "evals.json").unlink()
    write_results(fake_run.path / "evals.json", 40, stored)
    text = report_from_run(fake_run).read_text()
    assert "75.0 %" in text
    assert "70.0 to 80.0 %" in text


def test_nothing_from_outside_becomes_markup(tmp_path, world):
    evil = "<script>alert(1)</script>\"'&"
    hit = Hit(image=world.records[0].image, label=evil, score=1.0, right=True)
    row = SheetRow(query=evil, hits=(hit,), note=evil, detail=evil)
    content = Content(
        title=evil,
        facts=[(evil, evil)],
        rows=[{"step": s, "loss": 1.0 / s, f"eval/{evil}/top1": 0.5} for s in range(1, 4)],
        results={evil: {"top1": Estimate(0.5, 0.4, 0.6, 9)}},
        sheets=[Sheet(title=evil, rows=(row,))],
        config=evil,
        versions={evil: evil},
    )
    write_report(tmp_path / "r.html", content)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "script" not in check(text).tags
    assert "<script" not in text


def test_an_almost_empty_run_has_a_report(tmp_path):
    write_report(tmp_path / "r.html", Content(title="young"))
    page = check((tmp_path / "r.html").read_text())
    assert "not evaluated yet" in " ".join(page.text)


def test_a_run_without_metrics_is_an_error(fake_run):
    (fake_run.path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no metrics in"):
        report_from_run(fake_run)


def test_elements_escape_all_but_markup():
    assert element("p", "a<b", Html("<b>x</b>")) == "<p>a&lt;b<b>x</b></p>"
    assert element("a", "x", href='"', hidden=True, title=None) == '<a href="&quot;" hidden>x</a>'
    assert element("img", aria_label="y") == '<img aria-label="y">'
    assert join(["<", Html("<br>")], between="&") == "&lt;&<br>"


def test_small_pictures_are_inlined_as_they_are_and_large_ones_made_small(world):
    small = world.records[0].image
    assert "data:image/png;base64," in image(small, alt="x")
    assert "data:image/webp;base64," in image(small, alt="x", size=8)
    with pytest.raises(UserError, match="not a readable picture"):
        image(b"x", alt="x")


def test_charts_take_their_colours_from_the_page_and_never_change():
    points = [(s, 1.0 / s) for s in range(1, 5000)]
    lines = [Line(label="a_$x$", points=points), Line(label="b", points=points[:9], low=points[:9])]
    svg = chart("A chart", lines, percent=True)
    assert svg == chart("A chart", lines, percent=True)
    assert "var(--c0)" in svg
    assert "var(--c1)" in svg
    assert "a_$x$" in svg
    assert not re.search(r"#0[1-4]0[0-4]0", svg)
    assert len(svg) < 60_000


def test_smoothing_is_a_mean_without_bias_at_the_start():
    assert smooth([(1, 4.0), (2, 4.0), (3, 4.0)], 5) == [(1, 4.0), (2, 4.0), (3, 4.0)]
    values = [value for _, value in smooth([(1, 1.0), (2, float("nan")), (3, 3.0)], 1)]
    assert values == [1.0, 1.0, 3.0]
