"""``healsg predict``: classes, probabilities and masks of new samples."""

from healsg.commands.predict.command import run as run
