"""The web application of ``healsg serve``: a page, ``GET /info`` and ``POST /predict``, on Starlette. A picture gets
the probabilities of its classes or, of a segmentation, its mask."""

from __future__ import annotations

import base64
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from healsg.data.source import line
from healsg.datasets.images.decoding import FORMATS, decode
from healsg.datasets.new_samples.segmenter import Segmenter, mask_picture
from healsg.evaluation.predictor import Predictor
from healsg.loggers.thumbnails import COLOURS, SHARE
from healsg.serving.page import POLICY, page

MOST_BYTES = 20 << 20
"""Of one upload."""

MOST_PIXELS = 50_000_000
"""Of one picture, before it is decoded."""

MOST_WINDOWS = 256
"""Inputs of the network's size to which a smaller picture may be resized: a narrow strip would else take minutes."""

PLAIN = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types of a raw body that say nothing, among them what curl sends where it is told none."""


class UploadError(Exception):
    """What is wrong with an upload, in one line.

    Args:
        status: of the response.
        message: for the one who sent it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def application(predictor: Predictor, run: str, checkpoint: str, hosts: Sequence[str]) -> Starlette:
    """The application.

    Args:
        predictor: the network of a run, which takes pictures.
        run: how messages call the run.
        checkpoint: ``best`` or ``last``.
        hosts: the names under which it may be asked, so that no foreign page reaches it by a name of its own; ``*``
            allows any.
    """
    facts = info_of(predictor, run, checkpoint)
    say = answering(predictor, run)
    lock = threading.Lock()  # a network is put into evaluation mode and back around each forward pass

    def answer(content: bytes) -> dict[str, Any]:
        _check_size(content)
        with lock:
            return say(content)

    async def index(request: Request) -> Response:
        return HTMLResponse(page(run), headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})

    async def info(request: Request) -> Response:
        return JSONResponse(facts)

    async def predict(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(answer, await uploaded(request)))

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, UploadError) else 500
        return JSONResponse({"error": str(error)}, status)

    async def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        message = {404: "there is /, /info and POST /predict", 405: "POST /predict takes a picture"}
        return JSONResponse({"error": message.get(status, "failed")}, status)

    routes = [Route("/", index), Route("/info", info), Route("/predict", predict, methods=["POST"])]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)]
    handlers: Any = {UploadError: refused, HTTPException: unknown}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def info_of(predictor: Predictor, run: str, checkpoint: str) -> dict[str, Any]:
    """What ``/info`` says."""
    info = predictor.info
    names = list(info.class_names) or list(map(str, range(info.num_classes)))
    return {
        "run": run,
        "checkpoint": checkpoint,
        "kind": info.kind,
        "classes": names,
        "shape": list(info.input_shape),
        "formats": list(FORMATS),
        "most_bytes": MOST_BYTES,
        "most_pixels": MOST_PIXELS,
    }


async def uploaded(request: Request) -> bytes:
    """The picture of a request: its body, or the first file of a form. Raises UploadError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind in PLAIN or kind == "multipart/form-data" or kind.startswith("image/")):
        raise UploadError(415, f"{kind[:60]} is no picture; send one as the body, or as a file of a form")
    body = await _body(request)
    if kind == "multipart/form-data":
        body = await _file_of(request, body)
    if not body:
        raise UploadError(400, "nothing was sent; send a picture as the body, or as a file of a form")
    return body


async def _body(request: Request) -> bytes:
    """The whole body, of which no more is held than may be. Raises UploadError."""
    announced = request.headers.get("content-length", "")
    too_large = UploadError(413, f"more than {MOST_BYTES >> 20} MiB, which no upload may have")
    if announced.isdecimal() and int(announced) > MOST_BYTES:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise too_large
        parts.append(part)
    return b"".join(parts)


async def _file_of(request: Request, body: bytes) -> bytes:
    """The first file of a form. Raises UploadError."""

    async def again() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(request.scope, again).form(max_files=4, max_fields=16) as form:
            files = [value for value in form.values() if not isinstance(value, str)]
            return await files[0].read() if files else b""
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        raise UploadError(400, "the form cannot be read; send the picture as a file of multipart/form-data") from error


def answering(predictor: Predictor, run: str) -> Callable[[bytes], dict[str, Any]]:
    """What gives the answer of ``/predict`` to the content of a picture, and raises UploadError."""
    if not predictor.info.placed:
        return lambda content: predicted(predictor, content)
    segmenter = Segmenter([(run, predictor)])
    return lambda content: segmented(segmenter, content)


def _decoded(reader: Callable[[BytesIO], Any], content: bytes) -> Any:
    """What ``reader`` makes of a picture. Raises UploadError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a picture, of which the user sees the result
            return reader(BytesIO(content))
    except Exception as error:  # a broken file makes the decoder raise almost anything
        raise UploadError(422, f"the picture cannot be read ({line(error)[:200]})") from error


def segmented(segmenter: Segmenter, content: bytes) -> dict[str, Any]:
    """The mask of a picture: the file that ``healsg predict`` would write, the share of each class, and the same in
    colours to lay over the picture. Raises UploadError."""
    stored, sides = _decoded(segmenter.decoded, content)
    most = max(sides[0] * sides[1], MOST_WINDOWS * math.prod(segmenter.info.input_shape[1:]))
    if stored[0].numel() > most:
        raise UploadError(413, f"{sides[1]} x {sides[0]} pixels are too narrow a strip for this network")
    labels = segmenter.labelled(stored, sides)
    shares: dict[str, float] = {}
    colours: dict[str, str] = {}
    overlay = np.zeros((*labels.shape, 4), np.uint8)
    for place, (label, name) in enumerate(segmenter.names.items()):
        there = labels == label
        shares[name] = float(there.mean())
        if label:
            colour = COLOURS[(place - 1) % len(COLOURS)]
            colours[name] = "#{:02x}{:02x}{:02x}".format(*colour)
            overlay[there] = (*colour, round(255 * SHARE))
    mask = _png(mask_picture(labels, segmenter.colours))
    shown = _png(Image.fromarray(overlay))
    return {"shape": list(labels.shape), "shares": shares, "mask": mask, "colours": colours, "overlay": shown}


def _png(picture: Image.Image) -> str:
    """A PNG file in base64."""
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def predicted(predictor: Predictor, content: bytes) -> dict[str, Any]:
    """What a network says of a whole picture. Raises UploadError."""
    info = predictor.info
    sample = _decoded(lambda picture: decode(picture, info.input_shape[1], info.input_shape[0]), content)
    found = predictor(sample.unsqueeze(0), batch_size=1)
    names = list(info.class_names) or list(map(str, range(info.num_classes)))
    numbers = found.outputs if found.probabilities is None else found.probabilities
    by_name = dict(zip(names, numbers.reshape(-1).tolist(), strict=True))
    if found.classes is None:
        return {"prediction": by_name}
    return {"class": found.classes[0], "probability": max(by_name.values()), "probabilities": by_name}


def _check_size(content: bytes) -> None:
    """Refuse what is no picture, or has too many pixels, by its first bytes. Raises UploadError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as opened:
                width, height = opened.size
    except Image.DecompressionBombError as error:
        raise UploadError(413, f"more than {MOST_PIXELS} pixels, which no picture may have") from error
    except Exception as error:
        raise UploadError(415, f"this is no picture of a known kind ({', '.join(FORMATS)})") from error
    if width * height > MOST_PIXELS:
        raise UploadError(413, f"{width} x {height} pixels; a picture may have {MOST_PIXELS}")
