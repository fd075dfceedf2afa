"""What the class of a part declares about itself."""

from __future__ import annotations


def declares(part: object, name: str) -> bool:
    """Whether the class of ``part`` sets its attribute ``name`` to True in its own body.

    An inherited value is ignored: a user's subclass may do what its base class does not.
    """
    return bool(vars(type(part)).get(name, False))
