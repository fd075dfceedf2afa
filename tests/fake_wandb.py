"""A small server that answers the client of Weights & Biases: init, log, finish, and resume by the run's id."""

from __future__ import annotations

import gzip
import json
import re
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

KEY = "0123456789" * 4


class FakeWandb:
    """A context manager. ``mode`` may change at any time: ``ok``, ``500`` (every answer), ``hang`` (none), ``dead``."""

    def __init__(self, mode: str = "ok") -> None:
        self.mode, self.bodies = mode, list[str]()
        self.runs: dict[str, dict[str, Any]] = {}
        """What was seen of each run, by id: how often it was ``opened``, the ``history`` by offset, ``complete``."""
        self.sweep: dict[str, Any] = {}
        self.trials: list[dict[str, Any]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def __enter__(self) -> FakeWandb:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def die(self) -> None:
        """Answer nobody from here on: connections are refused."""
        if self.thread.is_alive():
            self.mode = "dead"
            self.server.shutdown()
            self.forget()
            self.thread.join()

    def forget(self) -> None:
        """In a forked child: this is its parent's socket alone."""
        self.server.socket.close()

    def rows(self, key: str) -> list[dict[str, Any]]:
        """What was logged for the run of this id."""
        return [json.loads(text) for _, text in sorted(self.runs[key]["history"].items())]

    def answer(self, path: str, body: str) -> dict[str, Any]:
        """One request."""
        self.bodies.append(body)
        if stream := re.fullmatch(r"/files/.*/([^/]+)/file_stream", path):
            return self._stream(self.runs[stream[1]], json.loads(body))
        if path != "/graphql":
            return {}
        order = json.loads(body)
        named = re.search(r"(?:query|mutation)\s+(\w+)", order["query"])
        known = order.get("operationName") or (named[1] if named else "")
        answers = {"RunResumeStatus": self._status, "UpsertBucket": self._upsert}
        answers |= {"SweepWithRuns": self._sweep, "CreateAgent": self._agent, "Heartbeat": self._heartbeat}
        answers |= {"Viewer": self._viewer, "UpsertSweep": self._upsert_sweep}
        return {"data": answers.get(known, self._other)(order.get("variables") or {})}

    def _viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "1", "entity": "somebody", "username": "somebody", "email": "", "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}

    def _sweep(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"sweep": {"config": json.dumps(self.sweep), "runs": {"edges": []}}}}

    def _agent(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent-1"}}}

    def _heartbeat(self, given: dict[str, Any]) -> dict[str, Any]:
        """The next trial once no run is running, and the end after the last one."""
        commands: list[dict[str, Any]] = []
        if not json.loads(given["runState"]):
            commands = [self.trials.pop(0)] if self.trials else [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent-1"}, "commands": json.dumps(commands)}}

    def _upsert_sweep(self, given: dict[str, Any]) -> dict[str, Any]:
        """``wandb sweep FILE``: from here on this is the sweep that an agent gets."""
        self.grid(yaml.safe_load(given["config"]))
        project = {"id": "2", "name": "healsg", "entity": {"id": "1", "name": "somebody"}}
        return {"upsertSweep": {"sweep": {"name": "sweep1", "project": project}, "configValidationWarnings": []}}

    def grid(self, sweep: dict[str, Any]) -> None:
        """From here on this is the sweep that an agent of any id gets: a trial for each combination of its values, or
        of the ends of their ranges; how the server searches is not of interest here."""
        self.sweep = sweep
        keys = list(sweep["parameters"])
        choices = [one.get("values") or [one["min"], one["max"]] for one in sweep["parameters"].values()]
        for number, values in enumerate(product(*choices)):
            args = {key: {"value": value} for key, value in zip(keys, values, strict=True)}
            trial = {"type": "run", "run_id": f"trial{number}", "args": args, "program": sweep["program"]}
            self.trials.append(trial)

    def _stream(self, run: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
        new = (sent.get("files") or {}).get("wandb-history.jsonl", {})
        run["history"] |= dict(enumerate(new.get("content", []), new.get("offset", 0)))
        run["complete"] = run["complete"] or bool(sent.get("complete"))
        return {}

    def _bucket(self, name: str) -> dict[str, Any]:
        entity = {"id": "1", "name": "somebody"}
        bucket = {"id": f"bucket-{name}", "name": name, "displayName": name, "config": "{}", "summaryMetrics": "{}"}
        bucket |= {"project": {"id": "2", "name": "healsg", "entity": entity}, "tags": [], "notes": ""}
        history = self.runs[name]["history"]
        tail = json.dumps([history[max(history)]] if history else [])
        counts = {"logLineCount": 0, "historyLineCount": len(history), "eventsLineCount": 0}
        return bucket | counts | {"historyTail": tail, "eventsTail": "[]", "wandbConfig": "{}"}

    def _status(self, given: dict[str, Any]) -> dict[str, Any]:
        bucket = self._bucket(given["name"]) if given["name"] in self.runs else None
        return {"model": {"id": "2", "name": "healsg", "entity": {"id": "1", "name": "somebody"}, "bucket": bucket}}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], {"opened": 0, "history": {}, "complete": False, "given": given})
        run["opened"] += given.get("host") is not None  # the client sends it once, as it opens the run
        return {"upsertBucket": {"bucket": self._bucket(given["name"]), "inserted": inserted}}

    def _other(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given.get("files", [])]
        made = {"runID": given.get("run"), "uploadHeaders": [], "files": files}
        return {"createRunFiles": made, "entity": {"organization": None}, "viewer": None, "serverInfo": None}


BLOCK = 32768
"""Bytes of the blocks of a ``.wandb`` file: those of LevelDB's log, after a header of 7."""


def offline_history(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of history in the file that the client keeps for a later upload; a medium is a dict with its ``path``
    and its ``_type``."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole, or the last part, of a record
            read = Record.FromString(record)
            record = b""
            if read.WhichOneof("record_type") == "history":
                yield _line(read.history.item)


def _line(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = found
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return found


def _handler(server: FakeWandb) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            while server.mode == "hang":
                time.sleep(0.1)
            if server.mode == "dead":
                raise ConnectionError
            answer, status = {}, 500
            if server.mode == "ok":
                answer, status = server.answer(self.path, body.decode(errors="replace")), 200
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: Any) -> None:
            """Silence."""

    for verb in ("GET", "POST", "PUT"):
        setattr(Handler, f"do_{verb}", Handler.reply)
    return Handler
