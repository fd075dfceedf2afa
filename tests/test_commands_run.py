"""A training command: what it prints, what it refuses once a run exists, and what it keeps to itself."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from healsg.cli import main
from healsg.runs import checkpoint, redact
from helpers import Program, command

TINY = ["model=mlp", "model.width=8", "runner=debug", "data.batch_size=16"]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def trained(program: Program, *overrides: str, name: str = "run", **options: Any) -> Path:
    """A small finished run."""
    done = program(command(*TINY, "quiet=true", f"name={name}", *overrides), **options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return Path("runs") / name


def test_lines_for_a_file_hold_no_control_codes(program: Program) -> None:
    done = program(command(*TINY, "name=run", "runner.epochs=3"))
    assert (done.returncode, done.stderr) == (0, "")
    assert not CONTROL.search(done.stdout)
    rows = done.stdout.splitlines()
    assert [row.split()[1] for row in rows if row.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    assert rows[0] == "runs/run"
    assert rows[-3:] == [
        "finished: runs/run",
        "report: runs/run/report.html",
        "next: healsg eval runs/run split=val, or predict, export, serve",
    ]


def test_fresh_moves_the_old_run_aside(program: Program) -> None:
    trained(program)
    again = program(command(*TINY, "name=run"))
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert re.search(r"runs/run: is finished; .*fresh=true", again.stderr)
    changed = program(command(*TINY, "name=run", "seed=1"))
    assert (changed.returncode, changed.stderr.count("\n")) == (2, 1)
    assert "seed: runs/run was started with 0, not 1" in changed.stderr
    trained(program, "seed=1", "fresh=true")
    seeds = {path.name: json.loads((path / "run.json").read_text())["seed"] for path in Path("runs").iterdir()}
    assert seeds == {"run": 1, "run~1": 0}


def test_a_run_without_a_name_gets_one(program: Program) -> None:
    done = program(command(*TINY, "quiet=true"))
    assert done.returncode == 0
    names = [path.name for path in Path("runs").iterdir()]
    assert len(names) == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_digits-mlp-adamw_[0-9a-f]{4}", names[0])


def test_init_from(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    trained(program, name="source")
    for source in ("source", "runs/source/checkpoints/last.pt"):
        assert main(["train", *TINY, f"init_from={source}", "fresh=true", "name=all"]) == 0
        told = capsys.readouterr().out
        assert re.search(r"init_from runs/source/checkpoints/(best|last).pt: 4 of 4 tensors loaded\n", told)
    assert main(["train", *TINY, "init_from=source", "model.depth=2", "name=part"]) == 0
    assert "4 of 6 tensors loaded; 2 not in it (body.3.weight, body.3.bias)" in capsys.readouterr().out
    checkpoint.save(Path("other.pt"), {"model": {"elsewhere.weight": torch.zeros(2)}})
    done = program(command(*TINY, "init_from=other.pt", "name=none", "quiet=true"))
    assert done.returncode == 1
    assert "error: init_from: nothing in other.pt fits this model; it holds elsewhere.weight" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(Path("runs/none/run.json").read_text())["status"] == "failed"
    assert main(["train", *TINY, "name=none"]) == 0, "what has saved nothing may begin with other settings"
    assert main(["train", *TINY, "init_from=source", "runner.max_time=0", "name=stopped"]) == 0
    Path("runs/source").rename("runs/elsewhere")
    assert main(["resume", "stopped", "runner.max_time=null"]) == 0, "a run that goes on needs its source no longer"


# --- secrets -------------------------------------------------------------------------------------------------------


def test_secrets_are_written_nowhere(program: Program) -> None:
    secrets = [f"SECRET{letter}VALUE" for letter in "ABCDEFGHIJKL"]
    a, b, c, d, e, f, g, h, i, j, k, of_environment = secrets
    given = [f"+args.api_key={a}", f"+args.url='https://me:{b}@host/path'", f"+args.deep.password={c}"]
    given += [f"+args.note={of_environment}", f"+args.my_token={d}", f"+args.some={{secret_key: {e}, api_key: {f}}}"]
    given += [f"+args.api_keys=[{g}]", f"+args.passwords=[{{one: {h}}}]", f"+args.hf_token='{i} {i}'"]
    given += [f"+args.db='postgres://:{j}@host/name'", f"+args.at='ftp://me:x@{k}@host'", "+args.password=12345678"]
    variables = {**os.environ, "WANDB_API_KEY": of_environment}
    done = program(command(*TINY, "name=run", *given), env=variables)
    assert done.returncode == 0, done.stderr
    again = program(command(*TINY, "name=run", "seed=x", *given), env=variables)
    assert again.returncode == 2
    shown = [done.stdout, done.stderr, again.stdout, again.stderr]
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert len(files) >= 10
    for secret in [*secrets, "12345678"]:
        assert not [text for text in shown if secret in text]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert "my_token=***" in Path("runs/run/run.json").read_text()


def test_redaction_spares_what_is_no_secret() -> None:
    for line in ("model.tokens=512", "+args.tokenizer=bpe", "f(a, b: int = 3)", "https://host/path", "x={a: 1, b: 2}"):
        assert redact.override(line) == line
        assert redact.code(line) == line
    assert redact.config({"max_token": 512, "tokenizer": "bpe"}) == {"max_token": 512, "tokenizer": "bpe"}
    patch = "+def f(token: str, password=None):\n+    api_key = 'SECRET-12'\n"
    assert redact.code(patch) == patch.replace("SECRET-12", "***")
