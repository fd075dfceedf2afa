"""``healsg diverge``: where two runs first differ, step by step."""

from healsg.commands.diverge.command import run as run
