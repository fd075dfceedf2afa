"""``healsg ledger``: what a run's record of its training samples says."""

from healsg.commands.ledger.command import run as run
