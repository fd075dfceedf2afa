"""``healsg reproduce``: train a recipe and compare with its published number."""

from healsg.commands.reproduce.command import run as run
