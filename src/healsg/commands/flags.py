"""The options of commands that are no training: ``--flags`` by argparse, whose mistakes are one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from healsg.errors import ConfigError


class Flags(argparse.ArgumentParser):
    """A parser that raises ConfigError in place of ending the process, and shows its help at 80 columns and more."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(f"healsg {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; {self.prog} --help shows what there is")
