"""Flags of all commands but train: ``--flags`` by argparse, whose errors are one line."""

from __future__ import annotations

import argparse
import tempfile
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from healsg.config.names import did_you_mean
from healsg.errors import ConfigError
from healsg.safefiles import FILE, kind_of

WIDTH = 80
"""Width of a help text, which fits a terminal of 80 columns."""

PLAIN = "\0"
"""Prefix of a word that begins with a dash and is no flag, such as a file name after ``--``."""


class Flags(argparse.ArgumentParser):
    """A command's ``--flags`` and its arguments, in any order.

    An error raises ConfigError instead of ending the process. The help keeps the lines of ``examples``, which are at
    most 80 columns wide.

    Args:
        command: its name, as in ``healsg NAME``.
        description: what it does, in sentences.
        examples: command lines with what they do, and whatever else needs lines of its own.
    """

    def __init__(self, command: str, description: str, examples: str = "") -> None:
        super().__init__(
            f"healsg {command}",
            description=textwrap.fill(description, WIDTH),
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_json(self, help_text: str = "for programs: one object") -> None:
        """``--json``, as ``json``."""
        self.add_argument("--json", action="store_true", help=help_text)

    def add_run(self, name: str = "run", help_text: str = "a folder, or a name below runs/") -> None:
        """``RUN``, as ``name``."""
        self.add_argument(name, metavar="RUN", help=help_text)

    def add_settings(self, help_text: str = "settings, as healsg train takes them") -> None:
        """``key=value ...``, as ``settings``."""
        self.add_argument("settings", nargs="*", default=[], metavar="key=value", help=help_text)

    def add_config_dir(self) -> None:
        """``--config-dir DIR``, as ``config_dir``."""
        self.add_argument(
            "--config-dir", metavar="DIR", help="folder with your own options, searched in addition to conf/"
        )

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Parse a command line; words after ``--`` are no flags. Raises ConfigError."""
        given = list(arguments)
        if "--" in given:
            index = given.index("--")
            before = self._option_string_actions.get(given[index - 1]) if index else None
            if before is not None and before.nargs != 0:
                self.error(f"argument {given[index - 1]}: expected one argument")
            given[index:] = [f"{PLAIN}{word}" if word.startswith("-") else word for word in given[index + 1 :]]
        found, unknown = self.parse_known_intermixed_args(given)
        if unknown and not unknown[0].startswith("-"):
            raise ConfigError(f"{unknown[0]}: is one argument too many; {self._shows()}")
        if unknown:
            hint = did_you_mean(unknown[0].partition("=")[0], self._option_string_actions)
            raise ConfigError(f"{unknown[0]}: there is no such option{hint or f'; {self._shows()}'}")
        values = vars(found)
        if empty := next((name for name, value in values.items() if value == ""), None):
            raise ConfigError(f"--{empty.replace('_', '-')}: needs a value; {self._shows()}")
        return Namespace(**{name: _plain(value) for name, value in values.items()})

    def error(self, message: str) -> NoReturn:
        of_a_flag = message.removeprefix("argument ")
        where = "" if of_a_flag != message else f"{self.prog}: "
        raise ConfigError(f"{where}{of_a_flag}; {self._shows()}")

    def _shows(self) -> str:
        return f"{self.prog} --help shows what there is"


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(word) for word in value]
    return value.removeprefix(PLAIN) if isinstance(value, str) else value


def page_file(path: str | None) -> Path | None:
    """The file of ``--page FILE``, checked for writing before the work; None if not given.

    Raises ConfigError if no file can be written there, or something else than a file would be replaced.
    """
    if not path:
        return None
    page = Path(path)
    if not page.absolute().parent.is_dir():
        raise ConfigError(f"--page: there is no folder {page.parent}")
    if (kind := kind_of(page)) not in ("", FILE):
        raise ConfigError(f"--page: {path} is {kind}; name a file")
    require_writable(page, "--page")
    return page


def require_writable(file: Path, flag: str) -> None:
    """Raise ConfigError, which names ``flag``, where no file can be made beside ``file``."""
    try:
        tempfile.TemporaryFile(dir=file.absolute().parent).close()
    except OSError as error:
        raise ConfigError(f"{flag}: {file} cannot be written ({error.strerror}); name a file elsewhere") from error
