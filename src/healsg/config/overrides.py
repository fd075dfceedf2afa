"""Overrides of a command line, read in Hydra's grammar."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from healsg.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


LONGEST = 4096
"""The most characters of an override: the time of Hydra's parser grows with their square."""


def parse(overrides: Sequence[str], loader: Any = None) -> list[Override]:
    """Parse overrides in Hydra's grammar; a value that the grammar does not accept is text. Raises ConfigError.

    Examples are a run named after its overrides, values with ``;`` or ``~``, and non-Latin alphabets. Hydra accepts
    them only in quotes; the ``input_line`` of such a result contains the quotes.
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
        if override.startswith("="):
            raise ConfigError(f"{override}: names no key; settings are of the form key=value")
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


def _is_text(override: str) -> bool:
    """Whether the value of an override that Hydra cannot parse is text: it does not start a list, a quote or a call."""
    key, _, value = override.partition("=")
    structured = re.match(r"""['"\[{=]|\$\{|\w+\(""", value.strip())
    return bool(key.strip() and value.strip()) and not structured and "${" not in value


def quoted(override: str) -> str:
    """``key=value`` with the value quoted as a text for Hydra."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = override.partition("=")
    double = '"' not in value and not value.endswith("\\")
    text = QuotedString(text=value.strip(), quote=Quote.double if double else Quote.single)
    return f"{key}={text.with_quotes()}"


def _unreadable(override: str, error: BaseException) -> str:
    """Why an override cannot be parsed, in one line, and how to quote its value if it is meant as a text."""
    if "=" not in override:
        dashes = "; settings are given without dashes, such as runner.epochs=10" * override.startswith("-")
        return f"{override}: is not of the form key=value{dashes}"
    reason = (str(error).splitlines() or ["?"])[0]
    line = f"{override}: is not of the form key=value ({reason})"
    return line if "${" in override else f"{line}; a text is quoted: {shlex.quote(quoted(override))}"
