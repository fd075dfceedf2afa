"""The options of commands that are no training: ``--flags`` by argparse, whose mistakes are one line."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import NoReturn

from healsg.errors import ConfigError
from healsg.safefiles import FILE, kind_of


class Flags(argparse.ArgumentParser):
    """A parser that raises ConfigError in place of ending the process, and shows its help at 80 columns and more."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(f"healsg {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; {self.prog} --help shows what there is")


def page_file(given: object) -> Path | None:
    """The file of ``--page FILE``, tried before the work that it is to show; None where it is not asked for.

    Raises ConfigError where no file can be written there, or something else than a file would be replaced.
    """
    if not given:
        return None
    page = Path(str(given))
    if not page.absolute().parent.is_dir():
        raise ConfigError(f"--page: there is no folder {page.parent}")
    if (kind := kind_of(page)) not in ("", FILE):
        raise ConfigError(f"--page: {given} is {kind}; name a file")
    try:
        tempfile.TemporaryFile(dir=page.absolute().parent).close()
    except OSError as error:
        raise ConfigError(f"--page: {given} cannot be written ({error.strerror}); name a file elsewhere") from error
    return page
