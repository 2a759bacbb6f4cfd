"""The HTML page around the plots of a report: style sheet, tables, sections. Nothing is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.bench.plot import escape

# Told apart by people with any colour vision; the second list for dark pages.
LIGHT = ("#0b62c4", "#d1480f", "#0f7f5f", "#9c3c94", "#8a6700", "#0087a8", "#b3263e", "#555e68")
DARK = ("#6cb2ff", "#ff9a62", "#4fd0a5", "#e08fd8", "#e3bd4a", "#55cfe8", "#ff8a98", "#b4bdc7")
SERIES = len(LIGHT)
DASHES = 4

STYLE = """
:root{--page:#fff;--card:#f6f7f9;--ink:#1a1d21;--soft:#59616b;--rule:#dfe3e8;--bad:#b3261e;LIGHT}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--card:#1c2024;--ink:#e7eaee;--soft:#9aa4af;--rule:#31373e;
--bad:#ff8a80;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:76rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.1rem;margin:2.25rem 0 .25rem}
p{margin:.25rem 0;color:var(--soft);max-width:60rem}
.bad{color:var(--bad)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1rem;margin-top:.75rem}
figure{margin:0;padding:.75rem;background:var(--card);border-radius:.5rem;min-width:0}
figcaption{font-weight:600;margin-bottom:.35rem}
figcaption small{display:block;font-weight:400;color:var(--soft)}
.wide{grid-column:1/-1}.wide>div{overflow-x:auto}.wide svg{min-width:54rem}
svg{display:block;width:100%;height:auto}
text{font:12.5px system-ui,sans-serif;fill:var(--soft)}
text.title{font-size:12px}text.note{font-size:11.5px}
.grid{stroke:var(--rule);stroke-width:1;fill:none}
.level{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 4;fill:none}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.line.d1{stroke-dasharray:7 4}.line.d2{stroke-dasharray:2 4}.line.d3{stroke-dasharray:9 3 2 3}
.thin{fill:none;stroke:var(--c);stroke-width:1;opacity:.45}
.area{fill:var(--c);opacity:.25;stroke:none}
.dot{fill:var(--c);stroke:var(--card);stroke-width:1}
.speck,.blob{fill:none;stroke:var(--c);stroke-linecap:round;stroke-width:2.6}
.blob{stroke-width:5}
.speck:hover,.blob:hover{stroke-width:6}.line:hover{stroke-width:3.5}
.late{fill:none;stroke:var(--bad);stroke-width:2}
.legend{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin:.75rem 0 0;padding:0;list-style:none}
.legend svg{display:inline-block;width:1.75rem;height:.5rem;margin-right:.45rem;vertical-align:.1em}
.sheet{overflow-x:auto;margin-top:.75rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;min-width:100%}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--rule)}
th{font-weight:600}thead th{color:var(--soft);font-size:.82rem;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--page)}
td small{display:block;color:var(--soft);font-size:.75rem}
@media (max-width:40rem){th:first-child{min-width:6.5rem;white-space:normal}}
SERIES
"""


def style() -> str:
    """The style sheet, with the colour `--c` of every series."""

    def named(colors: Sequence[str]) -> str:
        return "".join(f"--s{number}:{color};" for number, color in enumerate(colors))

    series = "\n".join(f".s{number}{{--c:var(--s{number})}}" for number in range(SERIES))
    sheet = STYLE.replace("LIGHT", named(LIGHT)).replace("DARK", named(DARK)).replace("SERIES", series)
    return sheet.strip()


def series_class(color: int, dash: int = 0) -> str:
    """The classes of a series: its colour and the dashes of its line, each coming round again when they run out."""
    return f"s{color % SERIES} d{dash % DASHES}"


def page(title: str, blocks: Iterable[str]) -> str:
    """The whole document. Its policy forbids every load, so that it cannot ask any host for anything."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style()}\n</style></head>\n<body><main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(blocks) + "\n</main></body></html>\n"
    )


def section(title: str, note: str, figures: Sequence[str], head: str = "") -> str:
    """A heading, a sentence below it, `head` (HTML) and the figures side by side where there is room."""
    told = f"<p>{escape(note)}</p>\n" if note else ""
    return f'<h2>{escape(title)}</h2>\n{told}{head}<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def figure(title: str, note: str, svg: str, wide: bool = False) -> str:
    caption = f"<figcaption>{escape(title)}<small>{escape(note)}</small></figcaption>"
    return f'<figure class="{"wide" if wide else "one"}">{caption}<div>{svg}</div></figure>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """What each line means: (classes of the series, name)."""
    stroke = '<svg viewBox="0 0 28 8" aria-hidden="true"><path class="line {}" d="M1 4H27"/></svg>'
    items = (f"<li>{stroke.format(style)}{escape(name)}</li>" for style, name in entries)
    return f'<ul class="legend">{"".join(items)}</ul>'


def sheet(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the row and stays in sight. Cells are HTML already."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>\n"
        for row in rows
    )
    return f'<div class="sheet"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'
