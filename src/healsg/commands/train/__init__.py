"""``healsg train``: one task, its help, and the measuring of ``runner=fast``."""

from healsg.commands.train.command import run as run
