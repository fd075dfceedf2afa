"""Uploads to ``healsg serve``: the body of a request or the first file of a form, up to a maximum size."""

from __future__ import annotations

import shutil
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

PLAIN = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Unspecific types of a request body, such as the default of curl."""

FORM = "multipart/form-data"


class UploadError(Exception):
    """A problem with an upload, in one line.

    Args:
        status: of the response.
        message: for the user.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def received(request: Request, file: BinaryIO, most: int, expected: str, types: tuple[str, ...]) -> str:
    """Write an upload to a file, in parts, so that it is never entirely in memory.

    Args:
        request: with the upload.
        file: to write to.
        most: the largest size, in bytes.
        expected: what is expected, for messages, such as ``picture``.
        types: allowed prefixes of the body's type, in addition to unspecific types.

    Returns:
        The file name from the form; empty for a request body.

    Raises:
        UploadError: the upload has another type, is too large, or empty.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind in PLAIN or kind == FORM or kind.startswith(types)):
        raise UploadError(415, f"{kind[:60]} is no {expected}; send one as the body, or as a file of a form")
    counted = _counted(request, most)
    name = ""
    if kind == FORM:
        name = await _copy_file_of(counted, file, expected)
    else:
        async for part in counted.stream():
            file.write(part)
    if not file.tell():
        raise UploadError(400, f"nothing was sent; send a {expected} as the body, or as a file of a form")
    return name


def _counted(request: Request, most: int) -> Request:
    """The same request, which raises UploadError if its body has more than ``most`` bytes."""
    too_large = UploadError(413, f"more than {most >> 20} MiB, which no upload may have")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > most:
            raise too_large
        return message

    return Request(request.scope, receive)


async def _copy_file_of(request: Request, file: BinaryIO, expected: str) -> str:
    """Write the first file of a form, and return its name. Raises UploadError."""
    try:
        async with request.form(max_files=4, max_fields=16) as form:
            files = [value for value in form.values() if not isinstance(value, str)]
            if not files:
                return ""
            await run_in_threadpool(shutil.copyfileobj, files[0].file, file)
            return files[0].filename or ""
    except (MultiPartException, HTTPException, KeyError, ValueError) as error:
        raise UploadError(400, f"the form cannot be read; send the {expected} as a file of {FORM}") from error
