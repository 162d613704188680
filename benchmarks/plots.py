"""The plots of docs/performance.md, drawn from its own tables: ``python benchmarks/plots.py``.

The page is the only place that holds the figures, so a plot cannot show others than the table above
it; a test fails when one was not drawn again.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from mlxfn.chart import Series, chart

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "performance.md"
BAR, GAP, LEFT, WIDTH = 18, 12, 210, 720  # in the units of the drawing
STYLE = (
    "<style>text{font:12px sans-serif;fill:#556}.title{font-weight:bold}.end{text-anchor:end}"
    ".middle{text-anchor:middle}.grid{stroke:#8884}.line{fill:none;stroke-width:2}"
    ".s0{--c:#3b6ea5}.s1{--c:#c8553d}.line{stroke:var(--c)}.mark,.bar{fill:var(--c)}</style>"
)


def main() -> None:
    """Draw every plot."""
    for name, text in plots(PAGE.read_text(encoding="utf-8")).items():
        (DOCS / name).write_text(text, encoding="utf-8")


def plots(page: str) -> dict[str, str]:
    """Return the plots of a page by their file names."""
    training = column(page, "Training alone", "CPU ms an update")
    vocab = [float(name.replace(",", "")) for name in column(page, "The loss", "full: peak MB")]
    curves = [
        Series(name, list(zip(vocab, column(page, "The loss", head).values(), strict=True)))
        for name, head in (("chunks", "chunks: peak MB"), ("full logits", "full: peak MB"))
    ]
    return {
        "performance-cpu.svg": bars("CPU time of an update, ms: shorter is better", training),
        "performance-loss.svg": whole(chart("peak MB of the loss over the vocabulary", curves)),
    }


def column(page: str, section: str, head: str) -> dict[str, float]:
    """Return a column of the first table of a section, by what stands in the first cell.

    Of a cell such as ``34.2 (34.0 to 35.0)`` only the first number counts.
    """
    _, _, rest = page.partition(f"# {section}\n")
    lines = [line for line in rest.splitlines() if line.startswith("|")]
    heads = cells(lines[0])
    found: dict[str, float] = {}
    for line in lines[2:]:
        row = cells(line)
        if len(row) != len(heads) or row[1].startswith("---"):
            break
        found[row[0]] = float(row[heads.index(head)].split(" ")[0].replace(",", ""))
    return found


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table.

    Example:
        >>> cells("| a | 1 (0 to 2) |")
        ['a', '1 (0 to 2)']
    """
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def bars(title: str, values: dict[str, float]) -> str:
    """Draw a horizontal bar for each value; the first is the one that the others are held against."""
    most = max(values.values())
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for index, (name, value) in enumerate(values.items()):
        y = 28 + index * (BAR + GAP)
        width = round((WIDTH - LEFT - 60) * value / most, 1)
        parts.append(
            f'<g class="s{min(index, 1)}"><text class="end" x="{LEFT - 8}" y="{y + 13}">'
            f'{escape(name)}</text><rect class="bar" x="{LEFT}" y="{y}" width="{width}" '
            f'height="{BAR}"/><text x="{LEFT + width + 6}" y="{y + 13}">{value:g}</text></g>'
        )
    height = 28 + len(values) * (BAR + GAP)
    return whole(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img">\n' + "\n".join(parts) + "\n</svg>"
    )


def whole(svg: str) -> str:
    """Return a drawing as a file of its own: with colours, and the name of its language."""
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n'


if __name__ == "__main__":
    main()
