"""Building blocks of self-contained HTML pages: page, table, figure, note."""

import base64
from html import escape

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 64rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.question { color: #555; font-size: 1.1rem; margin: 0; }
.answer { font-size: 1.15rem; background: #eef5fa; border-left: 4px solid #0072b2; padding: .8rem 1rem; margin: 1.2rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; align-items: flex-start; }
figure { margin: 0; flex: 0 1 29rem; } figure.wide { flex-basis: 60rem; } figure img { width: 100%; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e2e2e2; text-align: right; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.failed { color: #b3261e; } .note { color: #666; font-size: .9rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .82rem; }
"""


def page(title: str, subtitle: str, body: str) -> str:
    """Return a complete page. `title` and `subtitle` are plain text and are escaped; `body` is HTML."""
    name = escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>raycap: {name}</title><style>{CSS}</style></head><body>
<h1>{name}</h1><p class="question">{escape(subtitle)}</p>
{body}
</body></html>
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table. The cells of `header` are plain text and are escaped; those of `rows` are HTML."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(svg: bytes, name: str, *, wide: bool = False) -> str:
    """Return a figure with the SVG embedded as a data URI; `name` is its alternative text."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return f'<figure class="{"wide" if wide else "column"}"><img alt="{escape(name)}" src="{source}"></figure>'


def note(text: str) -> str:
    """Return a paragraph of explanation; `text` is plain text and is escaped."""
    return f'<p class="note">{escape(text)}</p>'


def link(text: str, file: str) -> str:
    """Return a paragraph that links to a file beside the page; `text` is plain text and is escaped."""
    return f'<p><a href="{escape(file)}">{escape(text)}</a></p>'
