"""``python -m healsg``: the program ``healsg`` of this interpreter, where no console script is on the path."""

from __future__ import annotations

import sys

from healsg.cli import main

if __name__ == "__main__":
    sys.argv[0] = "healsg"  # run.json records the command line, which is to be typed again
    sys.exit(main())
