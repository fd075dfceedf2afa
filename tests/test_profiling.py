"""``runner.profile``: a trace and a table in the run's folder, and the same numbers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from helpers import train

OPTIONS = ["model=mlp", "model.width=8", "runner.epochs=4", "data.batch_size=256", "quiet=true"]


def test_a_profiled_run_leaves_a_trace_and_a_table_and_ends_with_the_same_digest() -> None:
    digest = train(*OPTIONS, "runner.profile=true", "name=profiled")["digest"]
    assert "aten::addmm" in Path("runs/profiled/profile.txt").read_text()
    trace = json.loads(gzip.decompress(Path("runs/profiled/trace.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::addmm" for event in trace["traceEvents"])
    assert digest == train(*OPTIONS, "name=plain")["digest"]
    assert not Path("runs/plain/profile.txt").exists()
