"""Two networks of different initial weights that learn from each other, of which the first is evaluated."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from healsg.errors import ConfigError
from healsg.method import TaskMethod


class Pair(nn.Module):
    """Two networks on the same input: in training the outputs of both; in evaluation the first one's."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, input: Tensor) -> Any:
        output = self.first(input)
        return (output, self.second(input)) if self.training else output


def refuse_parts(method: TaskMethod, name: str) -> None:
    """Raises ConfigError for options that support only one network.

    Args:
        name: of the method, for the message.
    """
    if key := next((key for key in ("layer_decay", "freeze", "unfreeze_every") if getattr(method, key)), None):
        raise ConfigError(f"method.{key}: {name} trains two networks from scratch; leave it out")
