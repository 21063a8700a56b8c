"""The HTML pages CaLID writes: one file each, styled, readable offline, without a link to the outside."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calid import STANDING_NOTE

_MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp", ".gif": "image/gif", ".jpg": "image/jpeg"}

_STYLE = """
:root { color-scheme: dark; --ground: #0d1117; --panel: #151b23; --line: #2a323d; --text: #e8edf3; --quiet: #9aa7b5;
  --accent: #4cc2b4; --warn: #f2b65a; --acquired: #e8edf3; --linear: #8b9bb0; }
* { box-sizing: border-box; }
html { background: var(--ground); }
body { margin: 0 auto; max-width: 1240px; padding: 2.5rem 1.5rem 4rem; color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { margin-bottom: 2rem; }
h1 { font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; font-weight: 620; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 .5rem; }
p { max-width: 72ch; margin: .5rem 0 1rem; }
.lead { font-size: 1.08rem; color: var(--quiet); }
.note { display: inline-block; margin: .25rem 0 0; padding: .4rem .8rem; border-radius: 6px; color: var(--warn);
  background: #f2b65a1f; font-weight: 550; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; }
figcaption { margin-top: .5rem; max-width: 90ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { padding: .4rem .95rem .4rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--quiet); font-weight: 550; font-size: .85rem; }
td.best { color: var(--accent); font-weight: 650; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.5rem; margin: .5rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; font-weight: 640; letter-spacing: -0.01em; }
.tile span { color: var(--quiet); font-size: .85rem; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--panel); padding: .1em .35em;
  border-radius: 4px; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--quiet); }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--quiet);
  font-size: .9rem; }
#calid-view { position: relative; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
#calid-view canvas { display: block; width: 100%; cursor: grab; touch-action: none; }
#calid-view .bar { display: flex; flex-wrap: wrap; gap: .5rem 1.1rem; align-items: center; padding: .6rem .9rem;
  border-top: 1px solid var(--line); background: var(--panel); font-size: .9rem; }
#calid-view button { font: inherit; color: var(--text); background: var(--line); border: 0; border-radius: 5px;
  padding: .25rem .8rem; min-width: 4.5rem; cursor: pointer; }
#calid-view input { accent-color: var(--accent); }
#calid-view output { color: var(--quiet); min-width: 4rem; }
svg.chart { max-width: 100%; height: auto; }
svg.chart text { fill: var(--quiet); font: 13px system-ui, sans-serif; }
@media print { :root { --ground: #fff; --panel: #f4f6f8; --line: #ccd3da; --text: #111; --quiet: #555;
  --accent: #00786b; --warn: #8a5a00; color-scheme: light; } }
"""


def page(title: str, lead: str, body: Iterable[str], *, scripts: Iterable[str] = ()) -> str:
    """A complete HTML document that carries the standing note at its head and its foot.

    Args:
        title: plain text.
        lead: one or two plain sentences under the title.
        body: HTML fragments, in order.
        scripts: JavaScript, inlined at the end.
    """
    inlined = "".join("<script>" + script.replace("</script", "<\\/script") + "</script>\n" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{text(title)}</h1>\n<p class="lead">{text(lead)}</p>\n'
        f'<p class="note">{STANDING_NOTE}</p></header>\n'
        f"<main>\n{''.join(body)}</main>\n"
        f"<footer>Made by CaLID. {STANDING_NOTE}</footer>\n{inlined}</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Plain text, safe inside HTML."""
    return html.escape(str(value))


def section(heading: str, *fragments: str) -> str:
    """A headed part of the page; fragments are HTML."""
    return f"<section>\n<h2>{text(heading)}</h2>\n{''.join(fragments)}</section>"


def paragraph(words: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(words)}</p>\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, best: Iterable[tuple[int, int]] = ()) -> str:
    """A table of plain-text cells; `best` marks (row, column) cells, counted from 0."""
    marked = set(best)
    lines = []
    for row_index, row in enumerate(rows):
        classes = [' class="best"' if (row_index, index) in marked else "" for index in range(len(row))]
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for kind, cell in zip(classes, row, strict=True))
        lines.append(f"<tr>{cells}</tr>\n")
    titles = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>\n'
    )


def facts(pairs: Mapping[str, Any]) -> str:
    """A list of names and values; nested mappings and lists are spelled out as `key: value` lines."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{_spelled(value)}</dd>\n" for name, value in pairs.items())
    return f"<dl>\n{rows}</dl>\n"


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """Large figures with a small name each: (name, value)."""
    boxes = "".join(f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in pairs)
    return f'<div class="tiles">{boxes}</div>\n'


def picture(path: Path, caption: str, *, alternative: str) -> str:
    """An image file, inlined, with its caption below; `alternative` is read out where it cannot be seen."""
    return picture_bytes(path.read_bytes(), _MEDIA_TYPES[path.suffix.lower()], caption, alternative=alternative)


def picture_bytes(content: bytes, media_type: str, caption: str, *, alternative: str) -> str:
    """As `picture`, for an image in memory."""
    source = f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" alt="{text(alternative)}">{below}</figure>\n'


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(f"{text(name)}: {_spelled(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_spelled(part) for part in value)
    return text(value)
