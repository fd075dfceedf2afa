"""Decoding: a picture file as a tensor of one size, seen as a viewer shows it: turned by EXIF, alpha composited."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from io import BytesIO
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""What a file's content may be, whatever its name says. Pillow has readers of others that start programs."""

PIXELS = 1 << 27
"""The most that a picture, or what its shorter side is resized to, may have: more is refused, not read."""

ORIENTATION = 0x0112
"""The EXIF tag (and TIFF field) that says how a stored picture is to be turned when it is shown."""

BITS_PER_SAMPLE = 258
"""The TIFF field with the bits of each channel."""

BESIDE = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where Pillow keeps what may hold an orientation."""

TURNED = "pictures with an EXIF orientation are turned as it says, as a viewer shows them"
COMPOSITED = "pictures with transparent pixels are composited on white"
FIRST = "of animated pictures the first one is read"
DEEP = "grey pictures of more than 8 bits are read in full depth; the largest value of the depth is full intensity"

Remark = Callable[[str], None]
"""Is told what a user should know of how pictures were read."""


def unremarked(text: str) -> None:
    """The ``Remark`` of those who do not want to know."""


def decode(picture: str | BytesIO, size: int, channels: int, remark: Remark = unremarked) -> Tensor:
    """A picture, by path or in memory, as (channels, size, size): resized on its shorter side, cut to its centre.

    It is seen as a viewer shows it: turned by its EXIF orientation, transparent pixels composited on white. The result
    is uint8; of a grey picture of more than 8 bits it is float32 on the same scale, 0 to 255, with all its bits.

    A broken file makes the decoder raise almost anything. What is no file is not opened, since a pipe would wait.

    Args:
        picture: the path, or the file's content.
        size: height and width of the result in pixels.
        channels: 3 for colour, 1 for grey.
        remark: called with a sentence where something of the above was done.

    Raises:
        ValueError: what is no file, has too many pixels, several pages, or more than 8 bits a channel in colour, which
            Pillow would cut to 8.
    """
    from PIL import Image

    if not isinstance(picture, BytesIO) and not S_ISREG(os.stat(picture).st_mode):  # noqa: PTH116, a Path is slow
        raise ValueError("not a file")
    with Image.open(picture, formats=FORMATS) as opened:
        width, height = opened.size
        shorter = min(width, height)
        if not shorter or max(width * height, size * width // shorter * (size * height // shorter)) > PIXELS:
            raise ValueError(f"{width} x {height} pixels, which cannot be resized to a shorter side of {size}")
        pages = getattr(opened, "n_frames", 1)
        if pages > 1 and opened.format == "TIFF":
            raise ValueError(f"{pages} pages in one TIFF file: save each page that is meant as a file of its own")
        if pages > 1:
            remark(FIRST)
        full = full_intensity(opened)
        turned = opened.format == "TIFF" and fields_of(opened).get(ORIENTATION, 1) != 1  # which Pillow does by itself
        opened.load()
        upright = opened if turned else as_shown(opened)
        if turned or upright is not opened:
            remark(TURNED)
        if full is not None:
            remark(DEEP)
            return _cut(_deep(upright, full), size).expand(channels, size, size).contiguous()
        return _cut(_plain(upright, channels, remark), size)


def as_shown(opened: Image.Image) -> Image.Image:
    """A picture turned as its EXIF data say; the picture itself where these are absent or damaged."""
    from PIL.Image import Transpose

    if not opened.info.keys() & BESIDE:
        return opened
    try:
        orientation = opened.getexif().get(ORIENTATION)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError, struct.error):
        return opened  # the pixels are loaded already: only what is said beside them is damaged
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return opened.transpose(turns[orientation]) if orientation in turns else opened


def full_intensity(opened: Image.Image) -> float | None:
    """The largest value of a grey picture of 9 to 16 bits; None for one of 8 bits a channel, or of fewer.

    Raises ValueError for what Pillow would cut to 8 bits, or does not tell the largest value of.
    """
    mode, kind = opened.mode, opened.format
    tile: Any = next(iter(getattr(opened, "tile", None) or ()), None)
    bits = 8
    if kind == "TIFF":
        stored = fields_of(opened).get(BITS_PER_SAMPLE, 8)
        bits = max(stored) if isinstance(stored, tuple) else int(stored)
    elif kind == "PNG" and tile is not None and ";16" in str(tile[3]):
        bits = 16
    elif kind == "PPM" and (mode == "I" or (mode == "RGB" and tile is not None and _largest(tile[3]) > 255)):
        bits = 16  # Pillow scales the values of other depths to 16 bits
    if bits <= 8 and not mode.startswith(("I", "F")):
        return None
    if bits <= 16 and (mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM"))):
        return float(2**bits - 1)
    if mode.startswith(("I", "F")):
        raise ValueError(f"mode {mode}, 32 bits a channel: convert it to 8 bits, or to 16-bit grey")
    raise ValueError(f"{bits} bits a channel ({bits}-bit {mode}), which would be cut to 8: convert it to 8 bits")


def fields_of(opened: Image.Image) -> Any:
    """The fields of an open TIFF picture by number."""
    return getattr(opened, "tag_v2", {})


def _largest(arguments: Any) -> int:
    """The value of full intensity in the decoder's arguments of a PPM file; 255 where they name none."""
    last = arguments[-1] if isinstance(arguments, tuple) else arguments
    return last if isinstance(last, int) else 255


def _plain(opened: Image.Image, channels: int, remark: Remark) -> Image.Image:
    """A loaded picture of 8 bits a channel as RGB or L, composited on white where it is transparent."""
    from PIL import Image

    mode = "RGB" if channels == 3 else "L"
    if "transparency" in opened.info or opened.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        shown = opened.convert("RGBA")
        if shown.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            remark(COMPOSITED)
            shown = Image.alpha_composite(Image.new("RGBA", shown.size, (255, 255, 255, 255)), shown)
        return shown.convert(mode)
    return opened.convert(mode)


def _deep(opened: Image.Image, full: float) -> Image.Image:
    """A grey picture of more than 8 bits as floating-point numbers from 0 to 255."""
    from PIL import Image

    return Image.fromarray(np.asarray(opened).astype(np.float32) * np.float32(255 / full))


def _cut(image: Image.Image, size: int) -> Tensor:
    """(C, size, size): the shorter side resized to ``size``, then the centre cut out."""
    from PIL.Image import Resampling

    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    image = image.resize((width, height), Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.reshape(size, size, -1)).permute(2, 0, 1).contiguous()
