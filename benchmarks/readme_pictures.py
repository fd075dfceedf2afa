"""The two pictures of the README, of real runs: ``docs/terminal.svg`` and ``docs/report.png``.

    python -m benchmarks.readme_pictures RUN      (a folder; needs Chromium)

The terminal is what two commands print at 100 columns, drawn by rich. The report is what the browser shows of it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PROGRAM = [sys.executable, "-c", "from healsg.cli import main; raise SystemExit(main())"]
COMMANDS = (
    "healsg train runner.epochs=8 name=first",
    "healsg train -m method=adamw,sgd seed=0,1,2 runner.epochs=2 name=two",
    "healsg compare two",
)
SHOWN = (0, 2)
"""The commands whose output is shown."""

HEIGHT = 920
WIDE, NARROW, GAP = 960, 500, 12
"""Pixels of the two windows in which the report is shown, and between them."""

BESIDE = "<h2>Most confident mistakes"
"""Where the narrow window begins."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


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


def shown(page: Path, width: int, dark: bool) -> Image.Image:
    """What a browser shows first of a page, by day or by night."""
    from PIL import Image

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as place:
        picture = Path(place, "shown.png")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += [f"--user-data-dir={place}/profile", f"--window-size={width},{HEIGHT}"]
        options += [f"--blink-settings=preferredColorScheme={int(not dark)}"]
        line = [program, *options, f"--screenshot={picture}", page.resolve().as_uri()]
        subprocess.run(line, check=True, capture_output=True)
        with Image.open(picture) as opened:
            return opened.convert("RGB")


def report(run: Path) -> None:
    """A run's report from its beginning, in a wide window by day; and from its worst samples on, in a narrow one by
    night."""
    from PIL import Image

    page = run / "report.html"
    head, _, body = page.read_text().partition("<body>")
    with tempfile.TemporaryDirectory() as place:
        rest = Path(place, "rest.html")
        rest.write_text(f"{head}<body>{body[body.index(BESIDE) :]}")
        pictures = [shown(page, WIDE, dark=False), shown(rest, NARROW, dark=True)]
    sheet = Image.new("RGB", (WIDE + GAP + NARROW, HEIGHT), "white")
    sheet.paste(pictures[0], (0, 0))
    sheet.paste(pictures[1], (WIDE + GAP, 0))
    sheet.quantize(200).save(DOCS / "report.png", optimize=True)


if __name__ == "__main__":
    report(Path(sys.argv[1]))
    terminal()
