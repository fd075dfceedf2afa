"""Fine-tuning: all layers of a pretrained network are trained, earlier layers with smaller learning rates."""

from __future__ import annotations

from healsg.methods.supervised import Supervised


class FineTune(Supervised):
    """``Supervised`` from published weights, or those of ``init_from``; ``method=finetune`` sets ``layer_decay`` below
    1."""

    starts_from_weights = True
    takes_shards = True
