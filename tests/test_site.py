"""The pages of the site: their snippets run, the catalogue is current, both languages agree, it builds."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import fake_volumes
from healsg.cli import COMMANDS, main
from healsg.config.catalogue import Catalogue
from healsg.config.compose import Composer
from helpers import HANG, REPOSITORY, healsg
from json_schema import mismatch, schemas

DOCS = REPOSITORY / "docs"
PAGES = ("start", "pictures", "volumes", "concepts", "programs", "coming")
"""Those whose snippets run one after the other in a folder of their own."""

TRANSLATED = ("start", "pictures", "volumes", "concepts")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MISSING = {"volumes": ("nibabel", "scipy"), "pictures": ("onnxruntime", "starlette", "uvicorn")}
"""Packages of extras without which a page cannot be run."""


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / f"{page}.md").read_text())


def lines_of(block: str) -> list[list[str]]:
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def execute(words: list[str]) -> None:
    """A line of a page, as a reader types it; what waits for the reader is ended once it is there."""
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    elif words[:2] == ["healsg", "serve"]:
        words[-1] = "0"
        served = subprocess.Popen(healsg(*words[1:]), stdout=subprocess.PIPE, text=True)
        assert served.stdout is not None
        assert "http://127.0.0.1:" in served.stdout.readline()
        served.send_signal(signal.SIGINT)
        served.communicate(timeout=HANG)
    elif words[0] == "healsg":
        once = ["--once"] if words[1] == "watch" else []
        status = main([*words[1:], *once])
        assert status == (1 if words[1] == "diff" else 0) or words[1] == "diff", words
    else:
        assert words[:2] == ["pip", "install"], words


@pytest.mark.soak
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in MISSING.get(page, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for language, block in blocks(page):
        if language == "python" and (named := re.match(r"# (\S+\.py)\n", block)):
            Path(named[1]).write_text(block)
        elif language == "python":
            names: dict[str, Any] = {}
            exec(compile(block, page, "exec"), names)
        elif language == "bash":
            for words in lines_of(block):
                execute(words)
        elif language == "yaml":
            yaml.safe_load(block)


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_are_ones_that_compose(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for language, block in blocks(page):
        if language == "python":
            compile(block, page, "exec")
        for words in lines_of(block) if language == "bash" else ():
            if words[0] == "healsg":
                assert words[1] in COMMANDS
            if words[:2] in (["healsg", "train"], ["healsg", "verify"]):
                given = [word for word in words[2:] if word != "-m"]
                assert (len(Composer().sweep(given)) > 1) == ("-m" in words)


@pytest.mark.parametrize("page", TRANSLATED)
def test_both_languages_hold_the_same_snippets(page: str) -> None:
    assert blocks(page) == blocks(f"zh/{page}")


def catalogue_program() -> Any:
    spec = importlib.util.spec_from_file_location("catalogue_program", DOCS / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def test_the_catalogue_has_every_option_and_what_its_file_says() -> None:
    """Each option by its name and summary; of some all that is written of them (all of it: ``-m soak``)."""
    program, catalogue = catalogue_program(), Catalogue(Composer())
    text = {name: (DOCS / f"catalogue/{name}.md").read_text() for name in ("data", "model", "method", "other")}
    headings = set(re.findall(r"^##+ `([\w/]+=\w+)`", "\n".join(text.values()), re.MULTILINE))
    groups = [group for group in catalogue.choices if group != "recipe"]
    assert headings == {f"{group}={name}" for group in groups for name in catalogue.choices[group]}
    for group in groups:
        page = text[group if group in text else "other"]
        for name, (summary, _) in catalogue.summaries(group).items():
            assert f"`{group}={name}`\n\n{program.plain(summary)}\n" in page, f"{group}={name}: not current"
    for group, name in (("data", "imagefolder"), ("model", "cnn"), ("method", "fixmatch")):
        told = "\n".join(program.entry(catalogue, catalogue.option(group, name), "##"))
        assert told in text[group], f"{group}={name}: python docs/catalogue.py writes it"


@pytest.mark.soak
def test_the_catalogue_is_current() -> None:
    assert catalogue_program().main(["--check"]) == 0


RECIPE = """\
# @package _global_
defaults: [{override /model: mlp}]
model: {width: 8}
runner: {steps: 2, limit_batches: 2}
recipe: {paper: Nobody 2020, table: Table 1, data: digits, budget: 2 updates, metric: test/acc, published: 0.5,
  spread: null, tolerance: 0.5, first: null, gives: null, measured: null}
"""

SMALL = ["data=digits", "model=mlp", "model.width=4", "data.labels=200", "runner.epochs=1"]

ASKED = {
    "list": ["list", "runner"],
    "check": ["check", *SMALL[:4]],
    "runs": ["runs"],
    "watch": ["watch", "run0"],
    "show": ["show", "run0"],
    "diff": ["diff", "run0", "run1"],
    "compare": ["compare", "run0", "run1"],
    "ledger": ["ledger", "run0"],
    "ledger errors": ["ledger", "errors", "run0", "run1"],
    "explain": ["explain", "method=fixmatch"],
    "explain KEY": ["explain", "method.ema"],
    "reproduce": ["reproduce"],
    "reproduce RECIPE": ["reproduce", "mine", "--config-dir", "own", "quiet=true"],
    "plan": ["plan", "data=seg2d", "data.folder=masked", "model=resenc_unet_l", "data.channels=1"],
    "new": ["new", "model", "mine"],
}
"""By command, a line of it that costs little. ``serve`` waits for its reader: ``test_serve`` compares its line."""

DEAR = {
    "train": ["train", *SMALL, "name=run2"],
    "eval": ["eval", "run0", "split=val"],
    "diverge": ["diverge", "run0", "run1"],
    "rm": ["rm", "run2", "--yes"],
    "forecast": ["forecast", *SMALL, "--seconds", "1"],
    "resume": ["resume", "run0", "runner.epochs=2"],
    "verify": ["verify", *SMALL, "runs=1", "kills=1"],
    "predict": ["predict", "run0", "samples.npy"],
    "export": ["export", "run0", "--to", "safetensors", "--out", "weights"],
    "rerun": ["rerun", "run1", "--any-commit"],
    "archive": ["archive", "run1", "--out", "run1.tar.gz"],
    "pack": ["pack", "data=imagefolder", "data.folder=pictures", "--out", "archives"],
}


def told_by_the_page() -> dict[str, list[str]]:
    """By command what docs/programs.md says that its JSON holds; what stands in brackets is within."""
    rows = re.findall(r"^\| (`[^|]+) \| (.+) \|$", (DOCS / "programs.md").read_text(), re.MULTILINE)
    found: dict[str, list[str]] = {}
    for commands, text in rows:
        for command in re.findall(r"`(\w+(?: errors)?)(?: [A-Z]+)?`", commands):
            outer = re.split(r"; without|, and `replay`|, or `error`", re.sub(r"\([^)]*\)", "", text))[0]
            found.setdefault(command, re.findall(r"`([\w.]+)`", outer))
    return found


def test_the_page_for_programs_and_the_schema_name_the_same_keys() -> None:
    documented = schemas()
    for command, keys in told_by_the_page().items():
        kinds = documented[command].get("anyOf", [documented[command]])
        properties = [(one if "properties" in one else one["items"]).get("properties", {}) for one in kinds]
        assert any(set(keys) <= set(one) for one in properties), command


def test_every_command_is_on_the_page_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    told = told_by_the_page()
    assert set(COMMANDS) <= set(told)
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    for command in COMMANDS:
        with contextlib.suppress(SystemExit):  # argparse ends so
            assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "--json" in shown, command
        assert max(map(len, shown.splitlines())) <= 80, f"{command}: its help is wider than 80 columns"


@pytest.mark.parametrize("asked", [ASKED, pytest.param(DEAR, marks=pytest.mark.soak)], ids=["cheap", "dear"])
def test_json_holds_what_the_page_for_programs_says(
    asked: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        kept = ["quiet=true", "runner.ledger=true", f"data.fold={seed + 1}/2"]
        assert main(["train", *SMALL, *kept, f"seed={seed}", f"name=run{seed}"]) == 0
    np.save("samples.npy", np.zeros((1, 1, 8, 8), np.uint8))
    for name in "ab":
        Path("pictures", name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (12, 12), 10 * number).save(f"pictures/{name}/{number}.png")
    fake_volumes.write_pictures(Path("masked"))
    Path("own/recipe").mkdir(parents=True)
    Path("own/recipe/mine.yaml").write_text(RECIPE)
    documented = schemas()
    for command, words in asked.items():
        capsys.readouterr()
        assert main([*words, "--json"]) in (0, 1), command
        value = json.loads(capsys.readouterr().out)
        assert value, command
        schema = documented[re.sub(r" [A-Z]+$", "", command)]
        assert mismatch(value, schema, command) == ""


def test_a_value_that_is_not_what_the_schema_says_is_found() -> None:
    schema = schemas()["ledger errors"]
    right = {"index": 1, "name": "a", "label": "b", "probability": 0, "likely": "c", "likely_probability": 0.5}
    value = {"schema": 1, "runs": [], "samples": 1, "judged": 1, "errors": [right]}
    assert mismatch(value, schema) == ""
    assert mismatch(value | {"judged": True}, schema) == ".judged: is True, and not integer"
    assert mismatch(value | {"errors": [right | {"label": 3}]}, schema) == ".errors[].label: is 3, and not string"
    del value["runs"]
    assert mismatch(value, schema) == ": has no runs"


def test_every_page_of_the_site_is_in_its_menu() -> None:
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"[\w/]+\.md", (REPOSITORY / "mkdocs.yml").read_text().split("nav:")[1]))
    listed = re.findall(r"\]\(([\w/]+\.md)\)", (DOCS / "llms.txt").read_text())
    assert set(listed) <= pages


@pytest.mark.soak
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > 15
    for page in pages:  # nothing is fetched
        assert not re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?|png)"', page)
