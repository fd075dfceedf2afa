"""Overrides of a command line, read in Hydra's grammar."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from healsg.config.schema import _is_text, _unreadable, quoted
from healsg.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


LONGEST = 4096
"""Characters of an override: Hydra's grammar takes time that grows with their square."""


def parse(overrides: Sequence[str], loader: Any = None) -> list[Override]:
    """Read overrides in Hydra's grammar; a value that the grammar does not know is text. Raises ConfigError.

    Such are a run named by its overrides, values with ``;`` or ``~``, and other alphabets: Hydra takes them in quotes
    alone, and ``input_line`` of what is returned has these.
    """
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
            try:
                parsed.append(parser.parse_override(override))
            except (HydraException, RecursionError):
                if not _is_text(override):
                    raise
                parsed.append(parser.parse_override(quoted(override)))
        except (HydraException, RecursionError) as error:
            raise ConfigError(_unreadable(override, error)) from error
        parsed[-1].config_loader = loader
    return parsed
