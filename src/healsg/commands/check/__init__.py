"""``healsg check``: every sample read once, and one step tried, before training."""

from healsg.commands.check.command import run as run
