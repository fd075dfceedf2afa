"""``healsg eval``: a run evaluated again."""

from healsg.commands.eval.command import run as run
