"""``healsg reproduce``: a recipe trained for its published number."""

from healsg.commands.reproduce.command import run as run
