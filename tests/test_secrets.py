"""Secrets stand in no file and on no screen, however they came in; and a run opens no port."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fake_wandb import KEY, FakeWandb
from healsg.runs import redact
from test_logger_faults import slowed
from test_signals import ended, forked, record, wait_for

TINY = ["model=mlp", "model.width=8", "data.batch_size=512", "runner.epochs=2"]

ENVIRONMENT = {
    "WANDB_API_KEY": KEY,
    "MY_SERVICE_TOKEN": "env-5ErV1ce-value",
    "https_proxy": "http://me:pr0xy-Passw0rd@127.0.0.1:9",
    "no_proxy": "127.0.0.1",
}
PLANTED = {
    "variable": KEY,
    "group": ENVIRONMENT["MY_SERVICE_TOKEN"],
    "proxy": "pr0xy-Passw0rd",
    "key": "k3y-0f-an-0verride",
    "address": "aDDress-p4ssword",
    "query": "qu3ry-s1gned-value",
    "dict": "d1ct-inner-value",
    "list": "l1st-inner-value",
    "logger": "l0gger-s3cret-value",
    "shape": "ghp_" + "aB3dE6gH9" * 4,
    "remote": "g1t-rem0te-passw0rd",
    "literal": "p4tch-l1teral-value",
    "bare": "b4re-Ass1gned-value",
    "swept": "sw3pt-one-value",
}
GIVEN = [
    f"+args.api_key={PLANTED['key']}",
    f"+args.url='https://me:{PLANTED['address']}@host/data'",
    f"+args.signed='https://host/data?token={PLANTED['query']}&part=1'",
    f"+args.some={{password: {PLANTED['dict']}, plain: shown-value}}",
    f"+args.secrets=[{PLANTED['list']}]",
    f"+args.note='Bearer {PLANTED['shape']}'",
]
LOGGER = [
    "+logger.mine._target_=parts.Secretive",
    f"+logger.mine.api_key={PLANTED['logger']}",
    f"wandb.group={ENVIRONMENT['MY_SERVICE_TOKEN']}",
]
PARTS = """
import logging, os
from healsg import BasicTask, Mirror

class Secretive(Mirror):
    def __init__(self, api_key: str) -> None:
        self.api_key = api_key

    def start(self, folder, record):
        raise OSError(f"the server refused {self.api_key}")

class Talkative(BasicTask):
    def build_model(self):
        logging.getLogger("healsg").warning("logging in with %s at %s", self.args.api_key, self.args.url)
        if self.args.get("fail"):
            told = self.args.api_key, self.args.some.password, os.environ["MY_SERVICE_TOKEN"]
            raise RuntimeError("refused: " + ", ".join(told))
        return super().build_model()
"""


def repository() -> None:
    """The user's code is under git: a password in the remote's address, and literals in what is not committed."""
    Path("parts.py").write_text(PARTS)
    Path("settings.py").touch()
    Path(".env").touch()
    Path(".gitignore").write_text("*\n!settings.py\n!.env\n")
    own = ["-c", "user.name=a", "-c", "user.email=a@b"]
    address = f"https://me:{PLANTED['remote']}@host/code.git"
    for line in (["init", "-q"], ["remote", "add", "origin", address], ["add", "-A"], [*own, "commit", "-qm", "begin"]):
        subprocess.run(["git", *line], check=True)
    Path("settings.py").write_text(f'API_KEY = "{PLANTED["literal"]}"\n')
    Path(".env").write_text(f"ACCESS_KEY={PLANTED['bare']}\n")


def check_hidden(folder: Path, *screens: Path) -> int:
    """No secret in any file of the folder or on a screen; the number of files looked at."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for what, secret in PLANTED.items():
        found = [str(path) for path in [*files, *screens] if secret.encode() in path.read_bytes()]
        found += [str(path) for path in folder.rglob("*") if secret in path.name]
        assert not found, f"{what}: {found}"
    return len(files)


def test_secrets_are_in_no_file_and_on_no_screen() -> None:
    repository()
    line = [*TINY, *GIVEN, "task._target_=parts.Talkative", "name=run"]
    with FakeWandb() as server:

        def prepare() -> None:
            server.forget()
            os.environ.update(ENVIRONMENT, HOME=str(Path.cwd()), WANDB_CONFIG_DIR=str(Path.cwd()))
            os.environ.update(WANDB_BASE_URL=server.url)

        full = [*line, *LOGGER, "logger=tensorboard", "use_wandb=true"]
        assert ended(forked(["train", *full], prepare)) == 0, Path("output").read_text()
        assert ended(forked(["train", *full], prepare)) == 1  # it is finished
        assert ended(forked(["resume", "run"], prepare)) == 2  # what is hidden must be given again
        assert ended(forked(["train", *line, "wandb.api_key=" + PLANTED["key"]], prepare)) == 2
        assert ended(forked(["train", *line, "modle=" + PLANTED["shape"]], prepare)) == 2
        assert ended(forked(["train", *line, "data.batch_size='https://me:aDDress-p4ssword@host'"], prepare)) == 2
        assert ended(forked(["train", "init_from=https://me:aDDress-p4ssword@host/a", *line[:-1]], prepare)) == 2
        assert ended(forked(["train", *line, "--cfg", "job"], prepare)) == 0
        offline = [*line[:-1], "name=offline", "use_wandb=true", "wandb.mode=offline", *LOGGER]
        assert ended(forked(["train", *offline], prepare)) == 0
        sent = "".join(server.bodies)
    assert not [secret for secret in PLANTED.values() if secret in sent]
    assert check_hidden(Path("runs"), Path("output")) > 30
    told = Path("output").read_text()
    assert "the server refused ***" in told
    assert "logging in with *** at https://***@host/data" in told
    assert "shown-value" in Path("runs/run/config.yaml").read_text(), "what is no secret stays"
    assert record(Path("runs/run"))["patch"].count("***") == 2


def test_secrets_of_a_failure_and_of_a_sweep() -> None:
    repository()
    line = [*TINY, *GIVEN, "task._target_=parts.Talkative", "runner=debug"]

    def prepare() -> None:
        os.environ.update(ENVIRONMENT)

    assert ended(forked(["train", *line, "+args.fail=true", "name=run"], prepare)) == 1
    assert record(Path("runs/run"))["reason"] == "RuntimeError: refused: ***, ***, ***"
    assert ended(forked(["train", *line, "+args.fail=true", "name=run", "debug=true"], prepare)) == 1
    swept = f"+args.deploy_token={PLANTED['swept']},other-s3cret-value"
    assert ended(forked(["train", *line, "name=sweep", "-m", swept, "+args.fail=false,true"], prepare)) == 1
    assert len(list(Path("runs/sweep").glob("*/run.json"))) == 4
    assert check_hidden(Path("runs"), Path("output")) > 30
    told = Path("output").read_text()
    assert told.count("RuntimeError: refused: ***, ***, ***") >= 4
    assert "other-s3cret-value" not in told


def test_what_is_learnt_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_met", set())
    assert redact.config({"api_key": "learnt-value", "n": 3}) == {"api_key": "***", "n": 3}
    assert redact.text("refused learnt-value") == "refused ***"
    assert (
        redact.text("a word like tokenizer, max_tokens=3 or author=me")
        == "a word like tokenizer, max_tokens=3 or author=me"
    )
    assert redact.text("Authorization: Bearer abcd.efgh-ijkl") == "Authorization: Bearer ***"
    assert redact.code("token = tokenizer(text)\n") == "token = tokenizer(text)\n"
    error = RuntimeError("at learnt-value")
    assert "learnt-value" not in redact.trace(error)
    monkeypatch.setattr("sys.argv", ["train.py", "+args.password='of the line'", "seed=3"])
    assert redact.text("no of the line") == "no ***"


# --- ports -----------------------------------------------------------------------------------------------------------

IMAGES = """
import torch
from healsg import DataInfo, DatasetSource
from healsg.datasets.classification import Classification

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index): return {"input": torch.rand(1, 8, 8), "target": torch.tensor(index % 10)}

class Read(Classification):
    @property
    def info(self): return DataInfo(input_shape=(1, 8, 8), num_classes=10)
    def read(self, part): return None if part == "val" else DatasetSource(Slow())
"""


def descendants(root: int) -> dict[int, str]:
    """The processes that came from one, itself too, with their programs."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = path.read_text().rpartition(")")
            parents[int(path.parent.name)] = int(rest.split()[1])
            names[int(path.parent.name)] = head.partition("(")[2]
        except OSError:
            continue
    found = {root}
    for _ in range(10):
        found |= {child for child, parent in parents.items() if parent in found}
    return {process: names.get(process, "") for process in found}


def listening(processes: dict[int, str]) -> list[tuple[str, str]]:
    """The sockets that wait for connections: ``tcp`` or their path, and the program that has them open."""
    waiting = {}
    for kind in ("tcp", "tcp6"):
        rows = [row.split() for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
        waiting |= {row[9]: kind for row in rows if row[3] == "0A"}
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    waiting |= {row[6]: row[-1] for row in rows if int(row[3], 16) & 0x10000}
    found = []
    for process, name in processes.items():
        for path in Path(f"/proc/{process}/fd").glob("*"):
            try:
                target = str(path.readlink())
            except OSError:
                continue
            if target.startswith("socket:[") and (kind := waiting.get(target[8:-1])):
                found.append((kind, name))
    return found


def is_open_to_others(socket: Path) -> bool:
    """Whether another user could connect: who may write to the socket and enter its folder."""
    return bool(socket.stat().st_mode & 0o022 and socket.parent.stat().st_mode & 0o011)


def test_the_look_for_ports_can_find_one() -> None:
    with FakeWandb():
        assert ("tcp", Path("/proc/self/comm").read_text().strip()) in listening(descendants(os.getpid()))


@pytest.mark.parametrize("kind", ["default", "workers", "wandb"])
def test_a_run_listens_nowhere(kind: str) -> None:
    """At no port. The services of wandb's client, and torch's hand-over of tensors from workers, have sockets in the
    file system, which are closed to other users."""
    Path("reading.py").write_text(IMAGES)
    more = {"default": [], "workers": ["data=digits", "data._target_=reading.Read", "~data.shift", "~data.flip"]}
    more["workers"] += ["~data.augment", "~data.root", "data.workers=2", "data.batch_size=8", "data.val_fraction=0"]
    with FakeWandb() as server:

        def prepare() -> None:
            server.forget()
            os.environ.update(server.environment, HOME=str(Path.cwd()), WANDB_CONFIG_DIR=str(Path.cwd()))
            slowed(60.0)

        child = forked(["train", *TINY, "name=run", *more.get(kind, ["use_wandb=true"])], prepare)
        try:
            wait_for(Path("epoch1").exists, 20)
            tree = descendants(child)
            found = listening(tree)
            reachable = [socket for socket, _ in found if is_open_to_others(Path(socket))]
        finally:
            os.kill(child, signal.SIGKILL)
            ended(child)
    assert len(tree) >= {"default": 1, "workers": 3, "wandb": 3}[kind], tree
    assert not [socket for socket, _ in found if socket.startswith("tcp")], found
    assert not reachable, found
    assert bool(found) == (kind != "default"), found
    if kind == "workers":
        wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in tree), 20)
