"""The two pictures of the README, of real runs: ``docs/terminal.svg`` and ``docs/report.png``.

    python -m benchmarks.readme_pictures RUN      (a folder; needs weasyprint, pypdfium2)

The terminal is what two commands print at 100 columns, drawn by rich. The report is drawn without a browser: its layout
in columns and the colours of its figures are set for that here, since the renderer knows no CSS inside of SVG.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PROGRAM = [sys.executable, "-c", "from healsg.cli import main; raise SystemExit(main())"]
COMMANDS = (
    "healsg train runner.epochs=8 name=first",
    "healsg train -m method=adamw,sgd seed=0,1,2 runner.epochs=2 name=two",
    "healsg compare two",
)
SHOWN = (0, 2)
"""The commands whose output is shown."""

COLOURS = {"--c0": "#0969da", "--c1": "#bc4c00", "--c2": "#1a7f37", "--c3": "#8250df", "--c4": "#bf3989"}
LAYOUT = """
@page { size: 1000px 920px !important; margin: 0 !important }
.plots, .cards { display: block !important }
.plots figure { display: inline-block !important; width: 285px; margin: 4px; vertical-align: top }
.cards figure { display: inline-block !important; width: 88px; margin: 2px; font-size: 9px }
"""


def terminal() -> None:
    """Run the commands in a folder of their own and draw what they print."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=100, file=io.StringIO())
    with tempfile.TemporaryDirectory() as place:
        for number, command in enumerate(COMMANDS):
            environment = {**os.environ, "COLUMNS": "100"}
            line = [*PROGRAM, *command.split()[1:]]
            done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True, check=True)
            if number in SHOWN:
                console.print(Text(f"$ {command}", style="bold"))
                console.print(Text(done.stdout.rstrip()))
                console.print()
    svg = console.export_svg(title="healsg")
    (DOCS / "terminal.svg").write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


def coloured(html: str) -> str:
    """The page with the colours of its figures as attributes."""
    colour = "#0969da"

    def written(match: re.Match[str]) -> str:
        nonlocal colour
        tag = match[1]
        if tag == "g":
            named = re.search(r"--c:var\((--c\d)\)", match[0])
            colour = COLOURS.get(named[1], colour) if named else colour
            return match[0]
        style = {
            "path": f'fill="none" stroke="{colour}" stroke-width="2"',
            "circle": f'fill="{colour}"',
            "line": 'stroke="#d1d9e0"',
            "text": 'fill="#59636e" font-size="12"',
        }[tag]
        return f"<{tag} {style}{match[0][len(tag) + 1 :]}"

    return re.sub(r"<(g|path|circle|line|text)\b[^>]*>", written, html)


def report(run: Path) -> None:
    """Draw the first screen of a run's report."""
    import pypdfium2
    import weasyprint

    page = coloured((run / "report.html").read_text())
    drawn = weasyprint.HTML(string=page).write_pdf(stylesheets=[weasyprint.CSS(string=LAYOUT)])
    picture = pypdfium2.PdfDocument(drawn)[0].render(scale=96 / 72).to_pil()
    picture.quantize(128).save(DOCS / "report.png", optimize=True)


if __name__ == "__main__":
    report(Path(sys.argv[1]))
    terminal()
