"""The commit of a run: git runs nothing that a repository names, and nothing at all where it came with a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from healsg.errors import ConfigError
from healsg.runs import provenance, redact
from healsg.runs.patch import is_key_file, without_secrets
from healsg.trainer import TaskTrainer

OWN = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]


def git(*words: str, where: Path | str = ".") -> str:
    return subprocess.run(["git", *OWN, *words], cwd=where, check=True, capture_output=True, text=True).stdout.strip()


def repository(where: Path | str = ".", **files: str) -> str:
    """A repository with one commit, its hash; a changed file may be one of ``files``, by stem."""
    where = Path(where)
    where.mkdir(parents=True, exist_ok=True)
    git("init", "-q", where=where)
    for stem, content in files.items():
        (where / f"{stem}.py").write_text(content)
    git("add", "-A", where=where)
    git("commit", "-qm", "begin", "--allow-empty", where=where)
    return git("rev-parse", "HEAD", where=where)


def state(patch: bool = False, run: str = "runs/run", start: Path | None = None) -> dict[str, Any]:
    return provenance.code_state(Path(run).absolute(), Path("runs").absolute(), start or Path.cwd(), patch)


# --- what is said ----------------------------------------------------------------------------------------------------


def test_the_commit_and_whether_files_differ_from_it() -> None:
    assert state(start=Path(Path.cwd().anchor)) == {"commit": None}, "there is no repository"
    commit = repository(code="a = 1\n")
    assert state() == {"commit": commit, "dirty": False}
    os.utime("code.py", (1, 1))
    Path("untracked.py").touch()
    assert state(patch=True) == {"commit": commit, "dirty": False}, "a touched file is none that differs"
    Path("code.py").write_text("a = 2\n")
    assert state() == {"commit": commit, "dirty": True}
    facts = state(patch=True)
    assert "-a = 1\n+a = 2\n" in facts["patch"]
    Path("below/it").mkdir(parents=True)
    assert state(start=Path("below/it").absolute()) == {"commit": commit, "dirty": True}


def test_a_work_tree_and_packed_references() -> None:
    commit = repository("main", code="a = 1\n")
    git("pack-refs", "--all", where="main")
    git("worktree", "add", "-q", str(Path("other").absolute()), where="main")
    for place in ("main", "other"):
        assert state(start=Path(place).absolute()) == {"commit": commit, "dirty": False}


def test_whether_a_filtered_file_differs_is_not_said() -> None:
    """Git LFS keeps a short text in the place of a file; without the filter it cannot be compared."""
    Path(".gitattributes").write_text("*.bin filter=short\n")
    Path("large.bin").write_text("much")
    os.utime("large.bin", (1, 1))  # or git could not tell by its time that it is the committed one
    git("init", "-q")
    git("config", "filter.short.clean", "echo short")
    commit = repository(code="a = 1\n")
    assert state() == {"commit": commit, "dirty": False}
    Path("large.bin").write_text("more")
    assert state() == {"commit": commit}
    Path("code.py").write_text("a = 2\n")
    assert state() == {"commit": commit, "dirty": True}
    assert "large.bin" not in state(patch=True)["patch"]


def test_a_run_records_its_commit_and_no_patch_unless_asked() -> None:
    commit = repository(code="a = 1\n")
    Path("code.py").write_text("a = 2\n")
    for name, more in {"without": [], "with": ["record_patch=true"]}.items():
        trainer = TaskTrainer.compose("runner=debug", "model=mlp", "quiet=true", f"name={name}", *more)
        trainer.train()
        assert trainer.folder is not None
        record = trainer.folder.record
        assert (record["commit"], record["dirty"]) == (commit, True)
        assert ("patch" in record) == bool(more)


def test_a_patch_needs_the_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "has_detector", lambda: False)
    TaskTrainer.compose()
    with pytest.raises(ConfigError, match=r"^record_patch: .*pip install detect-secrets$"):
        TaskTrainer.compose("record_patch=true")


def test_git_is_told_to_start_nothing() -> None:
    """The settings and variables that outweigh those of a repository, as a literal copy."""
    assert set(provenance.OFF) == {
        *("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.pager=cat", "core.untrackedCache=false"),
        *("diff.external=", "diff.ignoreSubmodules=all", "submodule.recurse=false", "protocol.allow=never"),
    }
    wanted = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_PAGER": "cat"}
    wanted |= {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "GIT_ATTR_NOSYSTEM": "1"}
    given = provenance._environment()
    assert {key: value for key, value in given.items() if key in wanted} == wanted
    assert {key for key in given if key.startswith("GIT_")} <= {*wanted, "GIT_CEILING_DIRECTORIES"}


# --- no programs -----------------------------------------------------------------------------------------------------


def armed(where: Path, marks: Path) -> None:
    """Let a repository's configuration name a program at each place where git may run one; each leaves a mark."""
    marks.mkdir(exist_ok=True)
    (where / ".gitattributes").write_text("code.py diff=own\ndata.py filter=own\nmore.py filter=process\n")

    def program(name: str, then: str = "cat") -> str:
        return f'"touch {marks}/{name}; {then}"'

    hooks = where / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman", "pre-auto-gc"):
        (hooks / hook).write_text(f"#!/bin/sh\ntouch {marks}/hook\n")
        (hooks / hook).chmod(0o755)
    config = f"""
[core]
    fsmonitor = {program("fsmonitor", "false")}
    hooksPath = {hooks}
    pager = {program("pager")}
    sshCommand = {program("ssh")}
[diff]
    external = {program("external", "true")}
[diff "own"]
    textconv = {program("textconv")}
    command = {program("driver", "true")}
[filter "own"]
    clean = {program("clean")}
    smudge = {program("smudge")}
    required = true
[filter "process"]
    process = {program("process", "false")}
"""
    with (where / ".git/config").open("a") as file:
        file.write(config)
    for name in ("code.py", "data.py", "more.py"):
        (where / name).write_text("a = 2\n")
        os.utime(where / name, (time.time() + 5, time.time() + 5))


def test_git_itself_runs_what_a_repository_names(tmp_path: Path) -> None:
    """Or the tests below would show nothing."""
    repository(code="a = 1\n", data="a = 1\n", more="a = 1\n")
    armed(tmp_path, tmp_path / "marks")
    for options in ([], ["-c", "filter.process.process="]):  # that one fails, and ends git
        for more in ([], ["--no-ext-diff"]):
            subprocess.run(["git", *options, "diff", *more, "HEAD"], capture_output=True, check=False)
    assert {"fsmonitor", "driver", "external", "clean", "process", "textconv"} <= {
        path.name for path in (tmp_path / "marks").iterdir()
    }


@pytest.mark.parametrize("patch", [False, True])
def test_no_program_that_a_repository_names_is_run(tmp_path: Path, patch: bool) -> None:
    commit = repository(code="a = 1\n", data="a = 1\n", more="a = 1\n")
    armed(tmp_path, tmp_path / "marks")
    facts = state(patch)
    assert (facts["commit"], facts["dirty"]) == (commit, True)
    assert not list((tmp_path / "marks").iterdir())
    assert ("+a = 2" in facts.get("patch", "")) == patch


def test_nor_one_of_a_submodule_or_of_an_oddly_named_filter(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    repository("inner", code="a = 1\n")
    commit = repository("outer", code="a = 1\n")
    git("submodule", "--quiet", "add", str(tmp_path / "inner"), "inner", where="outer")
    git("commit", "-qm", "with", where="outer")
    commit = git("rev-parse", "HEAD", where="outer")
    marks.mkdir()
    with Path("outer/.git/modules/inner/config").open("a") as file:
        file.write(f'[core]\n\tfsmonitor = "touch {marks}/submodule; false"\n')
    (tmp_path / "outer/inner/code.py").write_text("a = 2\n")
    assert state(start=tmp_path / "outer") == {"commit": commit, "dirty": False}
    with Path("outer/.git/config").open("a") as file:
        file.write(f'[filter "a=b"]\n\tclean = "touch {marks}/filter; cat"\n')
    (tmp_path / "outer/.gitattributes").write_text("*.py filter=a=b\n")
    (tmp_path / "outer/code.py").write_text("a = 2\n")
    assert state(start=tmp_path / "outer")["commit"] == commit
    assert not list(marks.iterdir())


def received(path: Path) -> Path:
    """A run's folder as it may come from somebody else: with a repository, whose git is shown never to be called."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text("name: evil\n")
    (path / "metrics.jsonl").touch()
    repository(path, code="a = 1\n")
    return path


PLACES = ["the run", "a folder in it", "among runs", "the parent", "a run elsewhere", "a file to it", "a link to it"]


@pytest.mark.parametrize("place", PLACES)
def test_git_is_not_called_where_the_repository_came_with_a_run(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = received(tmp_path / "elsewhere/run"), tmp_path / "other"
    other.mkdir()
    (run / "deep/er").mkdir(parents=True)
    if place == "among runs":
        repository(tmp_path / "runs/some", code="a = 1\n")
    elif place == "the parent":
        repository(run.parent, code="a = 1\n")
    elif place == "a file to it":
        (other / ".git").write_text(f"gitdir: {run / '.git'}\n")
    elif place == "a link to it":
        (other / ".git").symlink_to(run / ".git")
    start, own = {
        "the run": (run, run),
        "a folder in it": (run / "deep/er", run),
        "among runs": (tmp_path / "runs/some", tmp_path / "runs/new"),
        "the parent": (run.parent, run),
        "a run elsewhere": (run, tmp_path / "runs/new"),
        "a file to it": (other, tmp_path / "runs/new"),
        "a link to it": (other, tmp_path / "runs/new"),
    }[place]
    called: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: called.append(given))
    assert provenance.code_state(own, tmp_path / "runs", start) == {"commit": None}
    assert not called


def test_a_resumed_run_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = TaskTrainer.compose("runner=debug", "model=mlp", "quiet=true", "name=evil")
    trainer.train()
    run = tmp_path / "runs/evil"
    repository(run, code="a = 1\n")
    armed(run, tmp_path / "marks")
    shutil.move(run, tmp_path / "received")
    run = tmp_path / "received"
    (run / "run.json").unlink()
    shutil.rmtree(run / "checkpoints")
    monkeypatch.chdir(run)
    again = TaskTrainer.load(".")
    again.train()
    assert again.folder is not None
    assert again.folder.record["status"] == "finished"
    assert again.folder.record["commit"] is None
    assert not list((tmp_path / "marks").iterdir())


# --- the patch -------------------------------------------------------------------------------------------------------

KEY_FILES = [
    *(".env", "deep/.env", ".env.local", "prod.env", ".envrc", "deploy.pem", "server.key", "a.p12", "a.pfx", "id_rsa"),
    *("id_ed25519", ".netrc", ".pgpass", ".npmrc", ".pypirc", ".git-credentials", "credentials", "credentials.json"),
    *("service-account-x.json", ".aws/config", ".ssh/known_hosts", "my_secrets.yaml", "db_password.txt", "main.tfvars"),
    *("ID_RSA.PUB", ".htpasswd", "store.jks", "keys.kdbx", ".kube/config", ".docker/config.json"),
]
CODE_FILES = ["train.py", "conf/env.yaml", "tests/test_secrets.py", "key.py", "docs/keys.md", "monkey.txt", "envs/a.py"]


def test_files_of_keys_are_known_by_their_names() -> None:
    assert [name for name in KEY_FILES if not is_key_file(name)] == []
    assert [name for name in CODE_FILES if is_key_file(name)] == []


def test_a_patch_leaves_files_of_keys_out_and_says_so() -> None:
    for name in (".env", "deploy.pem"):
        Path(name).write_text("nothing yet\n")
    repository(code="a = 1\n")
    for name in (".env", "deploy.pem"):
        Path(name).write_text("something-new\n")
    assert state(patch=True)["patch"] == "# left out, since files of such names hold secrets: .env, deploy.pem\n"
    Path("code.py").write_text("a = 2\n")
    patch = state(patch=True)["patch"]
    assert patch.startswith(
        "# left out, since files of such names hold secrets: .env, deploy.pem\ndiff --git a/code.py"
    )
    assert "something-new" not in patch


def test_a_long_patch_is_left_out() -> None:
    repository(code="a = 1\n")
    Path("code.py").write_text("a = 'some words of it'\n" * 60_000)
    assert state(patch=True)["patch"] == "# left out, since it is longer than 1 MiB\n"


def test_the_body_of_a_key_is_hidden_wherever_it_is_cut() -> None:
    body = "MIIEpAIBAAKCAQEA7Zq0" + "x7Yq" * 11
    kind = "RSA PRIVATE KEY"
    whole = f"diff --git a/x.txt b/x.txt\n+-----BEGIN {kind}-----\n+{body}\n+short==\n+-----END {kind}-----\n+after\n"
    cut = f"diff --git a/x.txt b/x.txt\n@@ -3,4 +3,4 @@\n {body}\n-{body[::-1]}\n+ordinary = 1\n"
    assert without_secrets(whole).count("***") == 4
    assert without_secrets(whole).endswith("+after\n")
    for text in (without_secrets(whole), without_secrets(cut)):
        assert body not in text
        assert body[::-1] not in text
    assert "+ordinary = 1" in without_secrets(cut)


ORDINARY = """\
diff --git a/train.py b/train.py
index 1234567..89abcde 100644
--- a/train.py
+++ b/train.py
@@ -1,4 +1,6 @@ def main():
-    lr = 0.1
+    lr = 0.05  # of the 3rd pass
+    tokens = tokenizer(text, max_tokens=512)
+    for batch in loader:
+        loss = criterion(net(batch["input"]), batch["target"])
+    path = "data/images/train"
"""


def test_ordinary_code_stays_as_it_is() -> None:
    assert without_secrets(ORDINARY) == ORDINARY
