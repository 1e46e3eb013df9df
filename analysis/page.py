"""The HTML of a report: escaping, tables, figures and one style sheet. Nothing is fetched: no scripts, fonts or images from elsewhere."""

import html
import re
from collections.abc import Iterable, Sequence

from analysis.drawing import Figure, Table

OPEN_ROWS = 8  # tables up to this length stand open, longer ones fold

STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --muted: #595959; --line: #dcdcdc; --blue: #005a8f; --bad: #a33b00; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 24px clamp(14px, 3vw, 40px) 60px; max-width: 1240px; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.15rem; font-weight: 600; color: var(--muted); margin: 0 0 6px; }
h2 { font-size: 1.3rem; margin: 48px 0 12px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 26px 0 8px; }
p { max-width: 78ch; }
.headline sup { font-size: .62em; }
sup { line-height: 0; }
.headline { font-size: clamp(1.25rem, 2.6vw, 1.75rem); line-height: 1.32; font-weight: 600; margin: 0 0 18px; max-width: 52ch; text-wrap: pretty; }
.findings { list-style: none; padding: 0; margin: 0; max-width: 92ch; }
.findings > li { padding: 7px 0 7px 38px; position: relative; border-top: 1px solid var(--line); }
.findings > li > b { position: absolute; left: 0; width: 26px; text-align: center; }
.findings .warning { color: var(--bad); font-weight: 600; }
.findings ul { margin: 4px 0 0; padding-left: 18px; font-weight: 400; color: var(--ink); }
.findings .good > b { color: #006b4e; }
.findings .note > b { color: var(--muted); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 500px), 1fr)); gap: 36px 44px; align-items: start; }
figure { margin: 0; min-width: 0; max-width: 540px; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin: 8px 0 6px; font-size: .95rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; margin: 4px 0 8px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; }
td.words { white-space: normal; min-width: 30ch; max-width: 80ch; }
th { font-weight: 600; vertical-align: bottom; }
summary { cursor: pointer; color: var(--blue); font-size: .92rem; padding: 4px 0; }
code, pre { font: .88rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
td code { overflow-wrap: anywhere; }
pre { background: #f6f6f4; padding: 12px 14px; overflow-x: auto; border-radius: 4px; }
a { color: var(--blue); }
.muted { color: var(--muted); }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  .figures { grid-template-columns: 1fr 1fr; gap: 18px 24px; }
  figure, tr, .findings li { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  summary { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: 2px 7px 2px 0; }
  td { white-space: normal; }
}
"""


def escape(text: object) -> str:
    """Text as HTML; a number and its percent sign stay on one line."""
    return html.escape(re.sub(r"(?<=\d) (?=%)", "\u00a0", str(text)), quote=True)


def table(data: Table, words: Sequence[int] = (), code: Sequence[int] = ()) -> str:
    """A table with a header row; columns in `words` wrap, columns in `code` are set as code."""

    def cell(i: int, text: str) -> str:
        inner = f"<code>{escape(text)}</code>" if i in code else escape(text)
        return f'<td class="words">{inner}</td>' if i in words else f"<td>{inner}</td>"

    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in data.header)
    body = "\n".join("<tr>" + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>" for row in data.rows)
    return f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def folded(title: str, inner: str, stands_open: bool) -> str:
    return f"<details{' open' if stands_open else ''}><summary>{escape(title)}</summary>\n{inner}\n</details>"


def figure(data: Figure, number: int, stands_open: bool) -> str:
    """The picture inline, its caption, and its table."""
    twin = folded(f"Table of figure {number}", table(data.table), stands_open and len(data.table.rows) <= OPEN_ROWS)
    caption = f"<figcaption><b>Figure {number}. {escape(data.title)}.</b> {escape(data.caption)}</figcaption>"
    return f'<figure id="{escape(data.name)}">\n{data.svg.strip()}\n{caption}\n{twin}\n</figure>'


def section(title: str, *parts: str) -> str:
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document; the policy makes any fetch from elsewhere impossible."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )
