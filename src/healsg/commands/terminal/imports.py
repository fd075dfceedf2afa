"""Imports of a command, without garbage collections in between."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def collections_deferred() -> Iterator[None]:
    """A context for imports, and for what is made before them, in which the garbage collector does not run.

    Importing torch makes some half a million objects, which stay until the program ends. Python would traverse them a
    dozen times meanwhile, a tenth of the import's CPU time. At the end of the context that imported torch they are
    frozen, so that no later collection traverses them either, nor the one at the exit.
    """
    if not gc.isenabled():
        yield
        return
    imported_before = "torch" in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if not imported_before:
            freeze_imports()
        gc.enable()


def freeze_imports() -> None:
    """Have the garbage collector leave out all objects that exist, if torch is among them and none are frozen yet.

    ``gc.unfreeze`` takes it back.
    """
    if "torch" in sys.modules and not gc.get_freeze_count():
        gc.freeze()
