"""The flags of commands: words behind ``--`` that begin with a dash."""

from __future__ import annotations

import pytest

from healsg.commands.terminal.flags import Flags
from healsg.errors import ConfigError


def flags() -> Flags:
    made = Flags("example", "An example.")
    made.add_argument("run")
    made.add_argument("others", nargs="*", default=[])
    made.add_argument("--out")
    return made


def test_words_behind_two_dashes_are_taken_as_they_are() -> None:
    found = flags().read(["--out", "x", "--", "-a", "-b", "--out"])
    assert (found.run, found.others, found.out) == ("-a", ["-b", "--out"], "x")


def test_a_flag_takes_no_value_from_behind_two_dashes() -> None:
    with pytest.raises(ConfigError, match="--out: expected one argument"):
        flags().read(["--out", "--", "-a"])
