"""What a run does not do before its first step: look for secrets in its own digests, or collect garbage in imports."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from healsg.commands.terminal.imports import collections_deferred
from healsg.runs import redact
from helpers import REPOSITORY

FIRST = """
import gc
from healsg.commands.terminal.imports import collections_deferred
collections = []
gc.callbacks.append(lambda phase, facts: collections.append(phase))
with collections_deferred():
    import torch
assert not collections and gc.isenabled() and gc.get_freeze_count() > 100_000
later = [[number] for number in range(1_000)]
assert collections, "garbage is collected again"
"""


def test_importing_torch_collects_no_garbage_and_freezes_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("objects = [[number] for number in range(100_001)]")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY / "src")])
    settings = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr


def test_nothing_is_frozen_where_torch_was_there_before() -> None:
    import torch  # noqa: F401

    frozen = gc.get_freeze_count()
    with collections_deferred():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_a_digest_is_no_secret_for_any_detector() -> None:
    """The detectors, whose import takes as long as a composition, are therefore not asked about one."""
    detectors = redact._detectors()
    for number in range(20):
        digest = hashlib.sha256(bytes([number])).hexdigest()
        assert redact.text(digest) == digest
        assert not any(list(detector.analyze_string(digest)) for detector in detectors)


def test_a_token_of_hexadecimal_digits_is_still_hidden() -> None:
    token = "SK" + "0123456789abcdef0123456789abcdef"
    assert redact.text(token) == redact.HIDDEN
