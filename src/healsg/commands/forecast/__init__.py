"""``healsg forecast``: time, memory and disk of a run before it."""

from healsg.commands.forecast.command import run as run
