"""The two pictures of the README, of real runs: ``docs/terminal.svg`` and ``docs/report.png``.

    python -m benchmarks.readme_pictures RUN      (a folder; needs Chromium)

The terminal is what two commands print at 100 columns, drawn by rich. The report is what the browser shows first.
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

DOCS = Path(__file__).parents[1] / "docs"
PROGRAM = [sys.executable, "-c", "from healsg.cli import main; raise SystemExit(main())"]
COMMANDS = (
    "healsg train runner.epochs=8 name=first",
    "healsg train -m method=adamw,sgd seed=0,1,2 runner.epochs=2 name=two",
    "healsg compare two",
)
SHOWN = (0, 2)
"""The commands whose output is shown."""

SIZE = (1000, 920)
"""Pixels of the window in which the report is shown."""

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


def report(run: Path) -> None:
    """What a browser shows first of a run's report."""
    from PIL import Image

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as place:
        picture = Path(place, "report.png")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options += [f"--user-data-dir={place}/profile", f"--window-size={SIZE[0]},{SIZE[1]}"]
        line = [program, *options, f"--screenshot={picture}", (run / "report.html").resolve().as_uri()]
        subprocess.run(line, check=True, capture_output=True)
        with Image.open(picture) as shown:
            shown.convert("RGB").quantize(128).save(DOCS / "report.png", optimize=True)


if __name__ == "__main__":
    report(Path(sys.argv[1]))
    terminal()
