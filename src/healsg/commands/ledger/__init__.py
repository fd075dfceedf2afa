"""``healsg ledger``: analyse a run's record of its training samples."""

from healsg.commands.ledger.command import run as run
