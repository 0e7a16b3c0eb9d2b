"""A page that carries everything it shows: tables, verdicts and figures in one HTML file, for screens and paper.

No scripts, no fonts, no addresses: it opens without a network and can be mailed. Figures are SVG in the page's colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from bitgen.drawing import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Section(NamedTuple):
    """A chapter of the page."""

    title: str
    lead: str
    """A sentence or two that say what is looked at here."""
    blocks: Sequence[str]
    """HTML, from `figure`, `table`, `tiles` and `verdicts`."""


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    names = [f"s{number}" for number in range(1, len(sections) + 1)]
    contents = "".join(f'<a href="#{name}">{escape(section.title)}</a>' for name, section in zip(names, sections))
    body = "".join(f'<section id="{name}"><h2>{escape(section.title)}</h2><p class="lead">{escape(section.lead)}</p>'
                   + "".join(section.blocks) + "</section>" for name, section in zip(names, sections))
    return PAGE.substitute(title=escape(title), subtitle=escape(subtitle), contents=contents, body=body, style=STYLE)


def figure(drawn: Figure, caption: str) -> str:
    """A figure over a caption; where the screen is narrow it is scrolled sideways instead of shrunk to nothing."""
    width = drawn.get_size_inches()[0] * 96
    picture = svg(drawn).replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return (f'<figure style="--width:{width:.0f}px"><div class="scroll">{picture}</div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>")


def table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table; numbers are set to the right with three digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    legend = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{legend}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="number">{value:,.0f}</td>' if value == int(value) and abs(value) >= 10 else (
            f'<td class="number">{value:.3g}</td>')
    return f"<td>{escape(str(value))}</td>"


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Numbers that are read first: (name, value, what it is held against)."""
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(beside)}</small></div>'
        for name, value, beside in values) + "</div>"


def verdicts(found: Sequence[tuple[str, str, str, str]]) -> str:
    """Lines (verdict, what, value, remark), the verdict as a word in its colour."""
    line = '<li class="{0}"><b>{0}</b><span>{1}</span><i>{2}</i><small>{3}</small></li>'
    return '<ul class="verdicts">' + "".join(line.format(*map(escape, parts)) for parts in found) + "</ul>"


STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #222222; --rule: #8a8a8a; --faint: #e4e4e4; --soft: #f6f6f4;
  --dim: #5f5f5f; --good: #00694d; --watch: #8a5a00; --bad: #b04a00; --link: #005c93; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --ink: #e9e9e6; --rule: #92969b; --faint: #34383d;
  --soft: #1f2226; --dim: #a9adb2; --good: #3fc79d; --watch: #f0b84a; --bad: #ff9a5c; --link: #7cc3ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main, header { max-width: 920px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 32px; } h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
header p { color: var(--dim); margin: 6px 0 16px; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; padding-bottom: 12px; border-bottom: 1px solid var(--faint); }
a { color: var(--link); text-underline-offset: 3px; } nav a { padding: 4px 0; }
section { padding: 8px 0 24px; border-bottom: 1px solid var(--faint); }
h2 { font-size: 1.25rem; margin: 20px 0 2px; } .lead { color: var(--dim); max-width: 68ch; margin: 0 0 14px; }
figure { margin: 22px 0; } figcaption { font-size: .88rem; color: var(--dim); max-width: 75ch; }
.scroll { overflow-x: auto; } .scroll svg { display: block; width: 100%; height: auto;
  max-width: var(--width); min-width: min(var(--width), 540px); }
table { border-collapse: collapse; font-size: .9rem; margin: 14px 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 4px; }
th, td { text-align: left; padding: 4px 16px 4px 0; border-bottom: 1px solid var(--faint); vertical-align: top; }
th { font-weight: 600; color: var(--dim); } .number { text-align: right; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 14px 0; }
.tile { background: var(--soft); border-radius: 8px; padding: 10px 14px; } .tile * { display: block; }
.tile span, .tile small { font-size: .8rem; color: var(--dim); } .tile b { font-size: 1.35rem; line-height: 1.3; }
.verdicts { list-style: none; padding: 0; margin: 14px 0; font-size: .92rem; }
.verdicts li { display: grid; grid-template-columns: 68px 190px 150px 1fr; gap: 2px 12px; padding: 5px 0;
  border-bottom: 1px solid var(--faint); } .verdicts i { font-style: normal; font-variant-numeric: tabular-nums; }
.verdicts small { color: var(--dim); } .OK b { color: var(--good); } .WATCH b { color: var(--watch); }
.BAD b { color: var(--bad); } .later b { color: var(--dim); }
@media (max-width: 700px) { .verdicts li { grid-template-columns: 68px 1fr; } .verdicts i, .verdicts small
  { grid-column: 2; } }
@media print { :root { --ground: #fff; --ink: #222; --rule: #8a8a8a; --faint: #e4e4e4; --soft: #f6f6f4; --dim: #555; }
  nav { display: none; } figure, li, tr { break-inside: avoid; } .scroll { overflow: visible; }
  .scroll svg { min-width: 0; } }
"""

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title><style>$style</style></head>
<body><header><h1>$title</h1><p>$subtitle</p><nav>$contents</nav></header>
<main>$body</main></body></html>
""")
