"""``healsg compare``: which setting is better, over seeds, folds and cases."""

from healsg.commands.compare.command import run as run
