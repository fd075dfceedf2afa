"""``healsg eval``: evaluate a run again."""

from healsg.commands.eval.command import run as run
