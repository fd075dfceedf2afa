"""Fine-tuning: all of a network that has been trained learns on, earlier layers more slowly."""

from __future__ import annotations

from healsg.methods.supervised import Supervised


class FineTune(Supervised):
    """``Supervised`` from published weights, or those of ``init_from``; its option sets ``layer_decay`` below 1."""

    starts_from_weights = True
    takes_shards = True
