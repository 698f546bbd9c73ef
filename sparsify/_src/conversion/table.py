"""Tables of text: aligned for a terminal, and HTML for a notebook."""

from collections.abc import Sequence
from html import escape

LEFT = {"layer", "shape", ""}
"""The columns whose cells stand on the left; numbers stand on the right."""


def amount(number: int) -> str:
    """A whole number to three digits: 38.1 M."""
    left = float(number)
    for unit in ("", " k", " M", " G", " T"):
        if left < 999.5:
            return f"{left:.3g}{unit}"
        left /= 1000
    return f"{left:.3g} P"


def as_text(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """An aligned table, and the notes below it."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        [
            cell.ljust(width) if title in LEFT else cell.rjust(width)
            for cell, width, title in zip(line, widths, header, strict=True)
        ]
        for line in lines
    ]
    return "\n".join([*("  ".join(line).rstrip() for line in aligned), *notes])


def as_html(
    header: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """The same as an HTML table; whatever names hold, it shows as it is."""

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["left" if title in LEFT else "right" for title in header]
        whole = [
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True)
        ]
        return f"<tr>{''.join(whole)}</tr>"

    parts = [
        f"<thead>{line(header, 'th')}</thead>",
        f"<tbody>{''.join(line(row, 'td') for row in rows)}</tbody>",
        f"<tfoot>{''.join(line(row, 'th') for row in totals)}</tfoot>",
    ]
    return f"<table>{''.join(parts)}</table>{''.join(f'<p>{escape(note)}</p>' for note in notes)}"
