"""Names, tables and numbers as Markdown."""

import math

import pytest
from markdown_it import MarkdownIt

from bitgen import markdown

PARSER = MarkdownIt("gfm-like", {"linkify": False})


@pytest.mark.parametrize("name", [
    "plain", "`", "``x`", "a ``` b", " lead", "a\n\nb", "<b>", "\\", "|", "*x*", "ünï", "€" * 300])
def test_code_shows_the_name_and_nothing_else(name):
    paragraph, = PARSER.parseInline(markdown.code(name))
    assert [(child.type, child.content) for child in paragraph.children] == [("code_inline", markdown.line(name))]


@pytest.mark.parametrize("words", [
    "a_b_c *x* `y` <z> [l](u) ![i](u) &amp; $x$ ~~s~~ \\ a|b", "https\u202e", "a\n# b", "- x"])
def test_text_shows_the_words_and_nothing_else(words):
    paragraph, = PARSER.parseInline(markdown.text(words))
    assert "".join(child.content for child in paragraph.children) == markdown.line(words)
    assert {child.type for child in paragraph.children} <= {"text", "text_special"}


@pytest.mark.parametrize("value", ["", " \n\t", "\u202e\u200b\x00", "\ud800"])
def test_a_name_of_nothing_visible_is_unnamed(value):
    assert markdown.line(value) == "unnamed"


def test_a_cell_cannot_end_early():
    rows = PARSER.parse(markdown.table(["a|b", "n"], [[markdown.code("x|y"), "1"], [markdown.text("p|q"), "2,000"]]))
    cells = [token.content for token, before in zip(rows[1:], rows) if before.type in ("td_open", "th_open")]
    assert cells == ["a|b", "n", "`x|y`", "1", "p|q", "2,000"]
    assert [token.attrs for token in rows if token.type == "th_open"] == [{}, {"style": "text-align:right"}]


@pytest.mark.parametrize("value, shown", [
    (None, "unknown"), (12000, "12,000"), (0, "0"), (1.0, "1"), (0.7324, "0.732"), (10.8126, "10.8"),
    (0.0002, "0.0002"), (2e-7, "2e-07"), (1234.5, "1,234"), (math.nan, "not finite"), (-math.inf, "not finite")])
def test_number(value, shown):
    assert markdown.number(value) == shown


@pytest.mark.parametrize("value, shown", [
    (None, "unknown"), (1.0, "1.000"), (0.00499, "0.005"), (0.0002, "0.0002"), (0.0, "0.000"),
    (math.nan, "not finite")])
def test_share(value, shown):
    assert markdown.share(value) == shown


@pytest.mark.parametrize("value, shown", [
    (None, "unknown"), (0, "0 J"), (999, "999 J"), (41_234.0, "41.2 kJ"), (1.3e9, "1.3 GJ"), (5.2e18, "5.2e+03 PJ")])
def test_amount(value, shown):
    assert markdown.amount(value, "J") == shown


@pytest.mark.parametrize("seconds, shown", [
    (None, "unknown"), (0.5, "0.5 s"), (59, "59 s"), (533.0, "8.88 min"), (5400, "1.5 h"), (200_000, "2.31 days")])
def test_duration(seconds, shown):
    assert markdown.duration(seconds) == shown
