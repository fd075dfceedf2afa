"""Decoding: an image file as a tensor of one size, as a viewer shows it: rotated by its EXIF orientation, alpha
composited.

Pillow first reads a file's header: format, size, depth, orientation. The pixels of a JPEG may then be decoded by
torchvision, which is faster and gives the same pixels; files that torchvision refuses are decoded by Pillow. With
torchvision the most common JPEGs skip Pillow's header check (``jpeg_header``).
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from healsg import torch_private
from healsg.datasets.images.jpeg_header import plain_header
from healsg.datasets.images.resizing import Window, resized, resized_floats, whole, whole_floats
from healsg.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

Decoder = Literal["auto", "torchvision", "pil"]
"""The decoder of JPEGs; see ``choose_decoder``."""

WORTH_AN_IMPORT = 5000
"""Number of images from which torchvision saves more time (0.3 ms each) than its import takes (1.4 s)."""

MOST_BYTES = 1 << 28
"""The largest file that is read as a whole for torchvision."""

JPEG_ENDINGS = (".jpg", ".jpeg", ".JPG", ".JPEG")
"""Extensions of files that are read whole before Pillow has checked them."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Accepted formats of a file's content, whatever its name. Some of Pillow's other readers start programs."""

PIXELS = 1 << 27
"""Most pixels of an image, before or after its shorter side is resized: larger ones are refused without reading."""

ORIENTATION = 0x0112
"""The EXIF tag (and TIFF field) of the orientation."""

BITS_PER_SAMPLE = 258
"""The TIFF field with the bits of each channel."""

BESIDE = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Keys of Pillow's ``info`` that may hold an orientation."""

TURNED = "pictures with an EXIF orientation are turned as it says, as a viewer shows them"
COMPOSITED = "pictures with transparent pixels are composited on white"
FIRST = "of animated pictures the first one is read"
DEEP = "grey pictures of more than 8 bits are read in full depth; the largest value of the depth is full intensity"

Remark = Callable[[str], None]
"""Called with a notice about how an image was read."""


def unremarked(text: str) -> None:
    """A ``Remark`` that does nothing."""


def choose_decoder(requested: Decoder, pictures: int) -> Literal["torchvision", "pil"]:
    """The decoder of a data set. ``auto`` is torchvision's if there are enough images to pay for its import.

    Both give the same levels where Pillow has libjpeg-turbo, as its wheels do; without that ``auto`` is Pillow. Raises
    ConfigError if torchvision is requested and has no decoder.
    """
    if requested == "pil":
        return "pil"
    from PIL import features

    if requested == "auto" and (pictures < WORTH_AN_IMPORT or not features.check("libjpeg_turbo")):
        return "pil"
    if torch_private.jpeg_decoder() is not None:
        return "torchvision"
    if requested == "auto":
        return "pil"
    raise ConfigError("data.decoder: this torchvision has no decoder of JPEGs; set it to pil")


def decode(
    picture: str | BytesIO,
    size: int,
    channels: int,
    remark: Remark = unremarked,
    decoder: Literal["torchvision", "pil"] = "pil",
    window: Window | None = None,
) -> Tensor:
    """A picture, by path or in memory, as (channels, size, size): resized on its shorter side, cut to its centre.

    It looks as in a viewer: rotated by its EXIF orientation, transparent pixels composited on white. The result is
    uint8; of a grey picture of more than 8 bits it is float32 on the same scale, 0 to 255, with all its bits.

    A damaged file can make the decoder raise almost any exception. Only regular files are opened, since a pipe would
    block.

    Args:
        picture: the path, or the file's content.
        size: height and width of the result in pixels.
        channels: 3 for colour, 1 for grey.
        remark: called with a notice if any of this was necessary.
        decoder: what decodes ordinary JPEGs; the levels are the same.
        window: the part that is resized instead; see ``resized``.

    Raises:
        ValueError: what is no file, has too many pixels, several pages, or more than 8 bits a channel in colour, which
            Pillow would cut to 8.
    """
    from PIL import Image

    levels = _upright(picture, size, channels, remark, decoder)
    if levels.dtype == np.float32:
        return resized_floats(Image.fromarray(levels), size, window).expand(channels, size, size).contiguous()
    made = resized(_with_channels(levels), size, window)
    return made if len(made) == channels else made.expand(channels, size, size).contiguous()


def decode_whole(picture: str | BytesIO, shorter: int | None, channels: int) -> tuple[Tensor, tuple[int, int]]:
    """A picture as ``decode`` sees it, but without the crop: (channels, H, W), and its own (height, width) as shown.

    Args:
        picture: the path, or the file's content.
        shorter: to which its shorter side is resized; None keeps its size.
        channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: see ``decode``.
    """
    from PIL import Image

    levels = _upright(picture, shorter, channels, unremarked, "pil")
    own = (levels.shape[0], levels.shape[1])
    if shorter is None:
        made = _with_channels(levels).permute(2, 0, 1)
    elif levels.dtype == np.float32:
        made = whole_floats(Image.fromarray(levels), shorter)
    else:
        made = whole(_with_channels(levels), shorter)
    return made.expand(channels, -1, -1).contiguous(), own


def _with_channels(levels: np.ndarray[Any, Any]) -> Tensor:
    """(H, W, C) of (H, W) or (H, W, C)."""
    pixels = torch.from_numpy(levels)
    return pixels if pixels.dim() == 3 else pixels.unsqueeze(2)


def _upright(
    picture: str | BytesIO,
    size: int | None,
    channels: int,
    remark: Remark,
    decoder: Literal["torchvision", "pil"],
) -> np.ndarray[Any, Any]:
    """The levels of a picture as a viewer shows it: uint8 (H, W) or (H, W, C), or float32 (H, W) of more than 8 bits.

    Args:
        size: to which its shorter side will be resized; None keeps its size. A picture is refused that would grow
            beyond bounds.
    """
    if not isinstance(picture, BytesIO) and not S_ISREG(os.stat(picture).st_mode):  # noqa: PTH116, a Path is slow
        raise ValueError("not a file")
    if decoder == "torchvision" and (ordinary := _ordinary(picture, size, channels)) is not None:
        return ordinary
    with open_picture(picture) as opened:
        width, height = opened.size
        require_size(width, height, size)
        pages = getattr(opened, "n_frames", 1)
        if pages > 1 and opened.format == "TIFF":
            raise ValueError(f"{pages} pages in one TIFF file: save each page that is meant as a file of its own")
        if pages > 1:
            remark(FIRST)
        full = full_intensity(opened)
        turned = opened.format == "TIFF" and fields_of(opened).get(ORIENTATION, 1) != 1  # which Pillow does by itself
        pixels = _by_torchvision(picture, opened, channels) if decoder == "torchvision" else None
        if pixels is None:
            opened.load()
        orientation = 1 if turned else orientation_of(opened)
        if turned or orientation != 1:
            remark(TURNED)
        if full is not None:
            remark(DEEP)
            return as_shown(_deep(opened, full), orientation)
        if pixels is None:
            pixels = np.array(_plain(opened, channels, remark))
        return as_shown(pixels, orientation)


def open_picture(picture: str | Path | BytesIO) -> Image.Image:
    """A picture of which the header alone is read, in one of ``FORMATS``.

    Pillow's warning of large pictures, which names no file, is not shown: the callers refuse what has more than
    ``PIXELS``, by name.
    """
    from PIL import Image

    if not any(entry[2] is Image.DecompressionBombWarning for entry in warnings.filters):
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image.open(picture, formats=FORMATS)


def require_size(width: int, height: int, size: int | None) -> None:
    """Raise ValueError for a picture without pixels, or with too many: its own, or those after its shorter side was
    resized to ``size``; None keeps its size."""
    shorter = min(width, height)
    if width * height > PIXELS:
        raise ValueError(f"{width} x {height} pixels, which is more than the {PIXELS:,} that a picture may have")
    resized_to = size or shorter
    if not shorter or resized_to * width // shorter * (resized_to * height // shorter) > PIXELS:
        raise ValueError(f"{width} x {height} pixels, which cannot be resized to a shorter side of {resized_to}")


def orientation_of(opened: Image.Image) -> int:
    """The orientation, 1 to 8, that is still to be applied to a picture; 1, upright, where the data are damaged."""
    if not opened.info.keys() & BESIDE:
        return 1
    try:
        orientation = opened.getexif().get(ORIENTATION)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OSError, struct.error):
        return 1  # only the metadata are damaged, the pixels can be read
    return next((turn for turn in range(2, 9) if turn == orientation), 1)


def as_shown(pixels: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Pixels, (H, W) or (H, W, C), turned as an EXIF orientation of 1 to 8 says; a copy if they are turned."""
    if orientation == 1:
        return pixels
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return np.array(pixels, order="C")  # a copy also for a side of one pixel: torch does not support negative strides


def full_intensity(opened: Image.Image) -> float | None:
    """The largest value of a grey picture of 9 to 16 bits; None for one of 8 bits a channel, or of fewer.

    Raises ValueError for formats that Pillow would truncate to 8 bits, or whose largest value it does not report.
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


def _by_torchvision(picture: str | BytesIO, opened: Image.Image, channels: int) -> np.ndarray[Any, Any] | None:
    """The pixels of an ordinary JPEG as (H, W, C); None for other files and for those left to Pillow.

    Conversion of colour to grey is left to Pillow too: libjpeg uses the stored luminance, Pillow the RGB values.
    """
    if opened.format != "JPEG" or not (opened.mode == "L" or (opened.mode == "RGB" and channels == 3)):
        return None
    content = _content(picture)
    if content is None:
        return None
    width, height = opened.size
    return _decoded(content, (len(opened.getbands()), height, width))


def _ordinary(picture: str | BytesIO, size: int | None, channels: int) -> np.ndarray[Any, Any] | None:
    """The same for a JPEG that needs no header check by Pillow; None for all others. Raises ValueError if it is too
    large."""
    if isinstance(picture, str) and not picture.endswith(JPEG_ENDINGS):
        return None
    content = _content(picture)
    header = None if content is None else plain_header(content.data)
    if content is None or header is None or header.channels not in (1, channels):
        return None
    require_size(header.width, header.height, size)
    return _decoded(content, (header.channels, header.height, header.width))


def _content(picture: str | BytesIO) -> np.ndarray[Any, Any] | None:
    """The bytes of a file; None if it is too large."""
    if isinstance(picture, BytesIO):
        return np.frombuffer(picture.getbuffer(), np.uint8)
    return None if os.stat(picture).st_size > MOST_BYTES else np.fromfile(picture, np.uint8)  # noqa: PTH116


def _decoded(content: np.ndarray[Any, Any], shape: tuple[int, int, int]) -> np.ndarray[Any, Any] | None:
    """The pixels (H, W, C) of a JPEG's bytes by torchvision; None if it gives none of ``shape``, (C, H, W)."""
    decode_jpeg = torch_private.jpeg_decoder()
    if decode_jpeg is None:
        return None
    try:
        decoded = decode_jpeg(torch.from_numpy(content))
    except RuntimeError:
        return None  # damaged or unsupported: Pillow reads it, or reports the problem
    return decoded.permute(1, 2, 0).numpy() if tuple(decoded.shape) == shape else None


def _plain(opened: Image.Image, channels: int, remark: Remark) -> Image.Image:
    """A loaded picture of 8 bits a channel as RGB or L, composited on white if it is transparent."""
    from PIL import Image

    mode = "RGB" if channels == 3 else "L"
    if "transparency" in opened.info or opened.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        shown = opened.convert("RGBA")
        if shown.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            remark(COMPOSITED)
            shown = Image.alpha_composite(Image.new("RGBA", shown.size, (255, 255, 255, 255)), shown)
        return shown.convert(mode)
    return opened if opened.mode == mode else opened.convert(mode)


def _deep(opened: Image.Image, full: float) -> np.ndarray[Any, Any]:
    """A grey picture of more than 8 bits as floating-point numbers from 0 to 255, (H, W)."""
    return np.asarray(opened).astype(np.float32) * np.float32(255 / full)
