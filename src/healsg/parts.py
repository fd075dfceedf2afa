"""What the class of a part declares of itself."""

from __future__ import annotations


def declares(part: object, name: str) -> bool:
    """Whether the class of ``part`` sets its attribute ``name`` to True in its own body.

    What it inherits does not count: a class of one's own may do what the class it derives from does not.
    """
    return bool(vars(type(part)).get(name, False))
