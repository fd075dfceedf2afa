"""The web application of ``healsg serve``, on Starlette: a page, ``GET /info`` and ``POST /predict``. For an image
it returns class probabilities or a mask; for a volume, the file of its mask."""

from __future__ import annotations

import base64
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from healsg.data.source import line
from healsg.datasets.images.decoding import FORMATS, decode
from healsg.datasets.new_samples.segmenter import Segmenter, mask_picture
from healsg.evaluation.predictor import Predictor
from healsg.loggers.thumbnails import SHARE, colour_of
from healsg.serving import volumes
from healsg.serving.page import POLICY, page
from healsg.serving.uploads import UploadError, received
from healsg.serving.volumes import VolumeService

MOST_BYTES = 20 << 20
"""The largest upload, in bytes."""

MOST_PIXELS = 50_000_000
"""The most pixels of an image, checked before it is decoded."""

MOST_WINDOWS = 256
"""The largest size of a resized image, in network inputs: a narrow strip would otherwise take minutes."""


def application(predictor: Predictor, run: str, checkpoint: str, hosts: Sequence[str]) -> Starlette:
    """The web application.

    Args:
        predictor: the network of a run, for images or volumes.
        run: the name of the run, for messages.
        checkpoint: ``best`` or ``last``.
        hosts: the allowed host names of requests, so that other web pages cannot reach the server by DNS rebinding;
            ``*`` allows any.
    """
    facts = info_of(predictor, run, checkpoint)
    service = VolumeService(predictor, run) if len(predictor.info.input_shape) == 4 else None

    async def index(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(page(run, service is not None), headers=headers)

    async def info(request: Request) -> Response:
        return JSONResponse(facts)

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, UploadError) else 500
        return JSONResponse({"error": str(error)}, status)

    async def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        what = "picture" if service is None else "volume"
        messages = {404: "there is /, /info and POST /predict", 405: f"POST /predict takes a {what}"}
        return JSONResponse({"error": messages.get(status, "failed")}, status)

    routes = [Route("/", index), Route("/info", info)]
    routes += routes_of_pictures(predictor, run) if service is None else routes_of_volumes(service)
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)]
    handlers: Any = {UploadError: refused, HTTPException: unknown}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def routes_of_pictures(predictor: Predictor, run: str) -> list[Route]:
    """``POST /predict`` for a network that takes images."""
    say = answering(predictor, run)
    lock = threading.Lock()  # a network is put into evaluation mode and back around each forward pass

    def answer(content: bytes) -> dict[str, Any]:
        _check_size(content)
        with lock:
            return say(content)

    async def predict(request: Request) -> Response:
        held = BytesIO()
        await received(request, held, MOST_BYTES, "picture", ("image/",))
        return JSONResponse(await run_in_threadpool(answer, held.getvalue()))

    return [Route("/predict", predict, methods=["POST"])]


def routes_of_volumes(service: VolumeService) -> list[Route]:
    """``POST /predict``, ``GET /masks/KEY`` and ``POST /mask``, which returns the file of the mask."""

    async def answer(request: Request) -> dict[str, Any]:
        with service.place() as folder:
            upload = Path(folder) / "upload"
            with upload.open("wb") as file:
                types = ("application/", "image/")
                name = await received(request, file, volumes.MOST_BYTES, "volume", types)
            return await run_in_threadpool(service.predicted, upload, name)

    def file_of(key: str) -> Response:
        found = service.mask(key)
        if found is None:
            message = f"there is no such mask; the last {volumes.KEPT} are kept"
            return JSONResponse({"error": message}, 404)
        return FileResponse(found[0], filename=found[1], media_type="application/octet-stream")

    async def predict(request: Request) -> Response:
        return JSONResponse(await answer(request))

    async def mask(request: Request) -> Response:
        return file_of((await answer(request))["mask"].rpartition("/")[2])

    async def kept(request: Request) -> Response:
        return file_of(request.path_params["key"])

    posted = [Route(path, endpoint, methods=["POST"]) for path, endpoint in (("/predict", predict), ("/mask", mask))]
    return [*posted, Route("/masks/{key}", kept)]


def info_of(predictor: Predictor, run: str, checkpoint: str) -> dict[str, Any]:
    """The content of ``/info``."""
    info = predictor.info
    return {
        "run": run,
        "checkpoint": checkpoint,
        "kind": info.kind,
        "classes": info.names,
        "shape": list(info.input_shape),
        **_limits(len(info.input_shape) == 4),
    }


def _limits(of_volumes: bool) -> dict[str, Any]:
    if of_volumes:
        most = {"most_bytes": volumes.MOST_BYTES, "most_voxels": volumes.MOST_VOXELS}
        return {"formats": list(volumes.KINDS), **most}
    return {"formats": list(FORMATS), "most_bytes": MOST_BYTES, "most_pixels": MOST_PIXELS}


def answering(predictor: Predictor, run: str) -> Callable[[bytes], dict[str, Any]]:
    """The function that computes the response of ``/predict`` from the bytes of an image; it raises UploadError."""
    if not predictor.info.dense:
        return lambda content: predicted(predictor, content)
    segmenter = Segmenter([(run, predictor)])
    return lambda content: segmented(segmenter, content)


def _decoded(reader: Callable[[BytesIO], Any], content: bytes) -> Any:
    """The image decoded by ``reader``. Raises UploadError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a picture, of which the user sees the result
            return reader(BytesIO(content))
    except Exception as error:  # a broken file makes the decoder raise almost anything
        raise UploadError(422, f"the picture cannot be read ({line(error)[:200]})") from error


def segmented(segmenter: Segmenter, content: bytes) -> dict[str, Any]:
    """The mask of an image: the file that ``healsg predict`` would write, the share of each class, and a coloured
    overlay. Raises UploadError."""
    stored, sides = _decoded(segmenter.decoded, content)
    most = max(sides[0] * sides[1], MOST_WINDOWS * math.prod(segmenter.info.input_shape[1:]))
    if stored[0].numel() > most:
        raise UploadError(413, f"{sides[1]} x {sides[0]} pixels are too narrow a strip for this network")
    labels = segmenter.labelled(stored, sides)
    shares: dict[str, float] = {}
    colours: dict[str, str] = {}
    overlay = np.zeros((*labels.shape, 4), np.uint8)
    for class_index, (label, name) in enumerate(segmenter.names.items()):
        there = labels == label
        shares[name] = float(there.mean())
        if label:
            colour = colour_of(class_index)
            colours[name] = f"#{bytes(colour).hex()}"
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
    """The network's prediction for an image. Raises UploadError."""
    info = predictor.info
    sample = _decoded(lambda picture: decode(picture, info.input_shape[1], info.input_shape[0]), content)
    found = predictor(sample.unsqueeze(0), batch_size=1)
    numbers = found.outputs if found.probabilities is None else found.probabilities
    by_name = dict(zip(info.names, numbers.reshape(-1).tolist(), strict=True))
    if found.classes is None:
        return {"prediction": by_name}
    return {"class": found.classes[0], "probability": max(by_name.values()), "probabilities": by_name}


def _check_size(content: bytes) -> None:
    """Raise UploadError for a file that is not an image or has too many pixels, according to its header."""
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
