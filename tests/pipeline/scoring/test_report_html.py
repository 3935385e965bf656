from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

import matplotlib as mpl

from interkd.pipeline.scoring.report import ScoreReport
from interkd.pipeline.scoring.report_html import render_html
from interkd.pipeline.scoring.report_plot import plot_heads

MakeReport = Callable[..., ScoreReport]
Texts = tuple[list[str], dict[str, list[str]]]

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Balance(HTMLParser):
    """Fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_stands_alone(make_report: MakeReport, noisy_texts: Texts) -> None:
    page = render_html(make_report(*noisy_texts))
    assert "://" not in page
    assert not re.search(r"""\b(src|href)\s*=\s*["'](?!#)""", page)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert {"svg", "table", "article"} <= parser.seen
    assert "script" not in parser.seen


def test_worst_utterances_come_first(make_report: MakeReport) -> None:
    references = ["one two three", "one two", "one two three four"]
    page = render_html(make_report(references, {"final": ["one", "one two", "x y z four"]}))
    assert page.index("utt-002") < page.index("utt-000")
    assert "utt-001" not in page
    assert '<span class="substitute"><span>three</span><span>z</span></span>' in page
    assert '<span class="delete"><del>two</del><span>·</span></span>' in page
    assert "3 errors in 4 words (3 substituted)" in page
    assert "2 errors in 3 words (2 deleted)" in page
    assert "utt-000" not in render_html(
        make_report(references, {"final": ["one", "one two", "x y z four"]}), worst=1
    )


def test_no_errors_at_all(make_report: MakeReport) -> None:
    page = render_html(make_report(["one"], {"final": ["one"]}))
    assert "Not a single word is wrong" in page


def test_text_is_escaped(make_report: MakeReport) -> None:
    nasty = "<script>alert('x')</script> & \"y\""
    page = render_html(
        make_report([nasty], {"a<b": ["<img>"]}, utt_ids=["<id>"], student="<b>student</b>")
    )
    assert "<script" not in page
    assert "<img" not in page
    assert "<id>" not in page
    assert "<b>student" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page
    assert "a&lt;b" in page


def test_figures_are_in_the_table(make_report: MakeReport, noisy_texts: Texts) -> None:
    report = make_report(*noisy_texts)
    page = render_html(report)
    for head, interval in zip(report.results.heads, report.word_intervals, strict=True):
        assert f"<td>{head.word_total.rate:.2f}</td>" in page
        assert f"{interval.low:.2f}–{interval.high:.2f}" in page
        assert f"<td>{head.word_total.substitutions:,}</td>" in page


def test_equal_reports_are_equal_pages(make_report: MakeReport, noisy_texts: Texts) -> None:
    assert render_html(make_report(*noisy_texts)) == render_html(make_report(*noisy_texts))


def test_plot_leaves_matplotlib_as_it_was(make_report: MakeReport, noisy_texts: Texts) -> None:
    before = dict(mpl.rcParams)
    svg = plot_heads(make_report(*noisy_texts))
    assert dict(mpl.rcParams) == before
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
