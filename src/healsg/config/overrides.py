"""Overrides of a command line, read in Hydra's grammar."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from healsg.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


LONGEST = 4096
"""Characters of an override: Hydra's grammar takes time that grows with their square."""


def parse(overrides: Sequence[str], loader: Any = None) -> list[Override]:
    """Read overrides in Hydra's grammar. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for override in overrides:
        if len(override) > LONGEST:
            raise ConfigError(f"{override[:40]!r}...: has more than {LONGEST} characters; use a file in --config-dir")
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in override):
            raise ConfigError(f"{override!r}: holds a character that is no text, such as a line break")
        try:
            parsed.append(parser.parse_override(override))
            parsed[-1].config_loader = loader
        except (HydraException, RecursionError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise ConfigError(f"{override}: is not of the form key=value ({reason})") from error
    return parsed
