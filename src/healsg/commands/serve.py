"""``healsg serve RUN``: a page on this machine to drop a picture and see its classes, or its mask, or a volume and save
its mask, and the same over HTTP."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import json
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

from healsg.commands.terminal.effect import require_effect
from healsg.commands.terminal.flags import Flags
from healsg.errors import ConfigError, RunError
from healsg.runs.folder import find
from healsg.runs.saved_config import load_saved
from healsg.system import share_one_heap

PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
"""By module the package that has to be installed."""


def run(arguments: list[str]) -> int:
    """Serve until Ctrl-C."""
    flags = Flags(
        "serve",
        "Serve the network of a run: a web page where you drop an image to see its class probabilities or its mask, "
        "and POST /predict (an image as request body or form file) and GET /info, both with JSON. A network for "
        "volumes takes .nii, .nii.gz, .mha and .nrrd files, and POST /mask returns the file of the mask. Only this "
        "machine can connect, unless --host names another address. key=value changes a setting of the run, such as "
        "runner.device=cpu.",
    )
    flags.add_run()
    flags.add_settings("settings of the run that are changed")
    flags.add_argument("--port", type=_port, default=8000, help="0 chooses a free port (default: 8000)")
    flags.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    flags.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights (default: best)")
    flags.add_json("for programs: the address as one line of JSON")
    args = flags.read(arguments)
    folder = find(args.run)
    composed = load_saved(folder, args.settings)
    require_effect("serve", args.settings)
    check_packages()
    share_one_heap()  # the thread that answers differs from request to request
    listening = listen(args.host, args.port)
    with listening, _exit_at_sigterm():
        from healsg.serving.app import application
        from healsg.trainer import TaskTrainer

        predictor = TaskTrainer(composed, folder=folder).predictor(args.checkpoint)
        check_inputs(str(folder.shown), predictor.info.kind, predictor.info.input_shape, predictor.info.input_names)
        hosts = ["127.0.0.1", "localhost", "[::1]"] if is_loopback(args.host) else ["*"]
        app = application(predictor, str(folder.shown), args.checkpoint, hosts)
        address = _address(args.host, listening.getsockname()[1])
        if not is_loopback(args.host):
            print(f"warning: {args.host} lets other machines send files to this one; Ctrl-C ends it", file=sys.stderr)
        shown = {"url": address, "run": str(folder.shown), "checkpoint": args.checkpoint}
        print(json.dumps(shown) if args.json else f"{folder.shown} on {address} (Ctrl-C ends it)", flush=True)
        _serve(app, listening)
    return 0


def check_packages() -> None:
    """Refuse where what serves is not installed. Raises ConfigError."""
    if missing := [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"healsg serve: {', '.join(missing)} is not installed; install it with: pip install 'healsg[serve]'"
        )


def check_inputs(run: str, kind: str, shape: Sequence[int], columns: Sequence[str]) -> None:
    """Refuse a network that takes neither pictures nor, for their masks, volumes. Raises ConfigError."""
    if kind == "segmentation" and len(shape) == 4:
        return
    is_picture = len(shape) == 3 and shape[0] in (1, 3) and (kind == "segmentation" or shape[1] == shape[2])
    if columns or not is_picture:
        expected = f"the columns {', '.join(columns[:5])}" if columns else f"arrays of {tuple(shape)}"
        raise ConfigError(
            f"{run}: takes {expected}, no pictures and no volumes; healsg predict takes tables and arrays"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises RunError if the address is in use or does not belong to this machine."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # where it would let two programs listen
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
            made.listen(128)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise RunError(
            f"{host}:{port}: cannot be listened on ({error.strerror}); --port 0 takes a free port"
        ) from error
    return made


def _serve(app: object, listening: socket.socket) -> None:
    """Answer until a signal; requests that are under way get their answers."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5, lifespan="off")  # type: ignore[arg-type]
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # which uvicorn raises again once it has ended
        print(file=sys.stderr)


@contextlib.contextmanager
def _exit_at_sigterm() -> Iterator[None]:
    """A context in which SIGTERM, which uvicorn sends itself again once it has ended, exits with an exception, so that
    temporary files are removed."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _address(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{name}:{port}/"


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise ConfigError(f"--port: {text} is not a number from 0 to 65535")
    return int(text)
