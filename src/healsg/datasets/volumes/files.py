"""Reading and writing volumes with their position in the scanner's space: NIfTI with nibabel, MetaImage and NRRD with
SimpleITK.

A volume is an array ``(C, X, Y, Z)`` with an affine as in nibabel: from voxel indices to millimetres, to the right, to
the front and up (RAS+). A written file takes affine, header and file type from the volume it belongs to, bit for bit.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from healsg.data.source import line
from healsg.errors import ConfigError, DataError
from healsg.safefiles import replacing, temporary_name

Array = np.ndarray[Any, Any]
Affine = np.ndarray[Any, np.dtype[np.float64]]
Trusted = Literal["agreeing", "sform", "qform"]

NIFTI = (".nii", ".nii.gz")
ITK = (".mha", ".mhd", ".nrrd")
EXTENSIONS = (*NIFTI, *ITK)

SAME = 1e-3
"""The largest distance, in voxels at the farthest corner, between two affines that are considered equal."""

FLAT = "stored as 4D with one channel, and taken as 3D"
"""The remark on a volume such as (X, Y, Z, 1)."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Converts ITK's directions (LPS) to nibabel's (RAS), and back."""


@dataclass(frozen=True)
class Geometry:
    """The position of a volume in space, and what a writer needs to reproduce it.

    Args:
        shape: voxels along each axis.
        affine: (4, 4) float64, from voxel indices to RAS+ millimetres.
        channels: the number of channels.
        dtype: the type of the stored numbers.
        header: nibabel's header, or ITK's origin, spacing, direction and further entries.
        remarks: unusual properties, as texts.
        scale: NIfTI's ``scl_slope`` and ``scl_inter``, which are applied when the numbers are read.
    """

    shape: tuple[int, ...]
    affine: Affine
    channels: int
    dtype: np.dtype[Any]
    header: Any = field(repr=False, compare=False)
    remarks: tuple[str, ...] = ()
    scale: tuple[float, float] = (1.0, 0.0)

    @property
    def spacing(self) -> tuple[float, ...]:
        """The size of a voxel along each axis, in mm."""
        return spacing_of(self.affine)


@dataclass(frozen=True)
class Volume:
    """The numbers and the geometry of a file.

    Args:
        path: the file.
        array: (C, X, Y, Z).
        geometry: its position in space.
    """

    path: Path
    array: Array = field(repr=False)
    geometry: Geometry


def spacing_of(affine: Affine) -> tuple[float, ...]:
    """The lengths of an affine's columns, in mm."""
    return tuple(float(length) for length in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))


def extension(path: Path) -> str:
    """The extension of a volume's file in lower case; ``.nii.gz`` counts as one. Raises DataError if it is not
    supported."""
    name = path.name.lower()
    found = next((one for one in (".nii.gz", *EXTENSIONS) if name.endswith(one)), None)
    if found is None:
        raise DataError(f"{path}: is no volume; known are {', '.join(EXTENSIONS)}")
    return found


def stem(path: Path) -> str:
    """The file's name without its extension."""
    return path.name[: -len(extension(path))]


def is_volume(path: Path) -> bool:
    """Whether a file has the name of a volume; hidden files, such as those that macOS creates, do not count."""
    return not path.name.startswith(".") and path.name.lower().endswith(EXTENSIONS)


def need(package: str) -> None:
    """Raise ConfigError if a package of the extra is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"data: volumes need {package}; install it with: pip install 'healsg[seg]'")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_geometry(path: Path, trust: Trusted = "agreeing") -> Geometry:
    """The geometry of a volume, from its header only.

    Args:
        path: the file.
        trust: the affine to use if the sform and the qform of a NIfTI file disagree; ``agreeing`` refuses such a file.

    Raises:
        DataError: one line that names the file.
    """
    if extension(path) in NIFTI:
        return _nifti_geometry(path, _open_nifti(path), trust)
    return _itk_geometry(path)


def read_volume(path: Path, trust: Trusted = "agreeing") -> Volume:
    """A volume with ``scl_slope`` applied; see ``read_geometry``. Raises DataError."""
    if extension(path) in NIFTI:
        image = _open_nifti(path)
        geometry = _nifti_geometry(path, image, trust)
        with damage(path):
            stored = np.asanyarray(image.dataobj)
        array = _channels_first(stored, geometry)
        return Volume(path, array, geometry)
    geometry = _itk_geometry(path)
    need("SimpleITK")
    import SimpleITK as sitk  # noqa: N813 - its usual name

    with damage(path):
        stored = sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path)))
    # (Z, Y, X) or (Z, Y, X, C) to (C, X, Y, Z)
    array = (
        stored.transpose(2, 1, 0)[None] if geometry.channels == 1 and stored.ndim == 3 else stored.transpose(3, 2, 1, 0)
    )
    return Volume(path, array, geometry)


def read_image(paths: Sequence[Path], trust: Trusted = "agreeing") -> Volume:
    """An image, float32, from one file, or from one file per channel in the same space.

    Raises DataError if numbers are NaN or infinite, or if the channels are not in the same space.
    """
    volumes = [read_volume(path, trust) for path in paths]
    for volume in volumes:
        require_finite(volume)
        require_same_space(volumes[0], volume, "channel")
    first = volumes[0]
    joined = np.concatenate([volume.array.astype(np.float32) for volume in volumes])
    return Volume(first.path, joined, first.geometry)


def read_mask(path: Path, labels: Sequence[int] | None = None, trust: Trusted = "agreeing") -> Volume:
    """A mask as integers (1, X, Y, Z) of the smallest of uint8, int16 and int32 that holds them.

    Args:
        path: the file.
        labels: the allowed labels; None allows any.
        trust: see ``read_geometry``.

    Raises:
        DataError: the mask has several channels, non-integer numbers, or labels that are not allowed.
    """
    volume = read_volume(path, trust)
    if len(volume.array) > 1:
        raise DataError(f"{path}: a mask has one channel, and this has {len(volume.array)}")
    found = volume.array
    if found.dtype.kind == "f":
        require_finite(volume)
        broken = found[found != np.rint(found)]
        if len(broken):
            scaled = "; its header's scl_slope scales them" if volume.geometry.scale != (1.0, 0.0) else ""
            raise DataError(f"{path}: a mask holds whole numbers, and this has {broken[0]:g}{scaled}")
    low, high = int(found.min(initial=0)), int(found.max(initial=0))
    kinds = [
        kind for kind in (np.uint8, np.int16, np.int32) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
    ]
    if not kinds:
        raise DataError(f"{path}: a mask's labels lie within 32 bits, and this has {low if low < 0 else high}")
    array = found.astype(kinds[0])
    if labels is not None:
        require_labels(array, labels, path)
    return Volume(path, array, volume.geometry)


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """A context that replaces a library's error about a damaged file by one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: cannot be read, it is cut short or damaged ({line(error)[:200]})") from error


def _open_nifti(path: Path) -> Any:
    need("nibabel")
    import nibabel

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    with damage(path):
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise DataError(f"{path}: is no NIfTI file, but {type(image).__name__}")
    return image


def _nifti_geometry(path: Path, image: Any, trust: Trusted) -> Geometry:
    header, shape = image.header, tuple(image.shape)
    remarks = []
    if header.get_data_dtype().kind not in "iuf":
        raise DataError(f"{path}: holds {header.get_data_dtype()}; convert it to whole or floating-point numbers")
    if len(shape) == 5 and shape[3] == 1:  # ITK's vectors
        shape = (*shape[:3], shape[4])
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) == 4 and channels == 1:
        remarks.append(FLAT)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"{path}: has the shape {tuple(image.shape)}; a volume is 3D, or 4D with channels last")
    scale = (float(image.dataobj.slope), float(image.dataobj.inter))
    if scale != (1.0, 0.0):
        remarks.append("scl_slope and scl_inter are {:g} and {:g}".format(*scale))
    affine = _nifti_affine(path, header, shape[:3], trust)
    _require_affine(affine, path)
    return Geometry(shape[:3], affine, channels, header.get_data_dtype(), header.copy(), tuple(remarks), scale)


def _nifti_affine(path: Path, header: Any, shape: Sequence[int], trust: Trusted) -> Affine:
    """The affine to use. Raises DataError if sform and qform disagree and neither is trusted."""
    with damage(path):
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
        best: Affine = header.get_best_affine()
    if sform is None or qform is None:
        return best
    if trust == "agreeing":
        apart = corner_distance(sform, qform, shape)
        if not apart <= 10 * SAME:  # a qform is stored as a quaternion of float32
            raise DataError(
                f"{path}: its sform and its qform place it {apart:.3g} voxels apart; mend the header, or say which is "
                "meant: data.trust=sform or qform"
            )
    return np.asarray(qform if trust == "qform" else sform, dtype=np.float64)


def _channels_first(stored: Array, geometry: Geometry) -> Array:
    return np.moveaxis(stored.reshape(*geometry.shape, geometry.channels), -1, 0)


def _itk_geometry(path: Path) -> Geometry:
    need("SimpleITK")
    import SimpleITK as sitk  # noqa: N813

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    reader = sitk.ImageFileReader()
    reader.SetFileName(os.fspath(path))
    with damage(path):
        reader.ReadImageInformation()
    size, channels = tuple(reader.GetSize()), reader.GetNumberOfComponents()
    if len(size) == 4 and size[3] == 1:
        raise DataError(f"{path}: is 4D with one channel {size}; store it as 3D")
    if len(size) != 3 or min(size) < 1:
        raise DataError(f"{path}: has the shape {size}; a volume is 3D, with channels in its voxels")
    origin = reader.GetOrigin()
    spacing = reader.GetSpacing()
    direction = reader.GetDirection()
    entries = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    header = {"origin": origin, "spacing": spacing, "direction": direction, "entries": entries}
    if extension(path) == ".nrrd":
        header["space"] = _nrrd_space(path)
    affine = affine_of(origin, spacing, direction)
    _require_affine(affine, path)
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID()).lower()
    if "complex" in kind:
        raise DataError(f"{path}: holds complex numbers; convert it to whole or floating-point numbers")
    return Geometry(size, affine, channels, np.dtype(_NUMBERS.get(kind.split(" of ")[-1], "float64")), header)


_NUMBERS = {
    "8-bit unsigned integer": "uint8",
    "8-bit signed integer": "int8",
    "16-bit unsigned integer": "uint16",
    "16-bit signed integer": "int16",
    "32-bit unsigned integer": "uint32",
    "32-bit signed integer": "int32",
    "64-bit unsigned integer": "uint64",
    "64-bit signed integer": "int64",
    "32-bit float": "float32",
    "64-bit float": "float64",
}


def affine_of(origin: Sequence[float], spacing: Sequence[float], direction: Sequence[float]) -> Affine:
    """The affine for ITK's origin, spacing and direction (row by row), which are in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, dtype=np.float64).reshape(3, 3) * np.asarray(spacing, dtype=np.float64)
    affine[:3, 3] = origin
    return LPS @ affine


# --- what must hold --------------------------------------------------------------------------------------------------


def _require_affine(affine: Affine, path: Path) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError(f"{path}: its affine is not invertible, so that its voxels have no size; mend the header")


def corner_distance(first: Affine, second: Affine, shape: Sequence[int]) -> float:
    """The largest distance between the corners of a volume under two affines, in voxels along the shortest voxel
    side."""
    corners = np.array([[*corner, 1.0] for corner in np.ndindex(2, 2, 2)])
    corners[:, :3] *= np.asarray(shape) - 1
    apart = np.sqrt((((first - second) @ corners.T)[:3] ** 2).sum(axis=0)).max()
    return float(apart / min(spacing_of(first)))


def require_finite(volume: Volume) -> None:
    """Raise DataError if numbers are NaN or infinite."""
    if volume.array.dtype.kind != "f":
        return
    planes = (volume.array[..., plane_index] for plane_index in range(volume.array.shape[-1]))
    if broken := sum(plane.size - np.count_nonzero(np.isfinite(plane)) for plane in planes):
        raise DataError(f"{volume.path}: {broken} of its numbers are NaN or infinite; replace them")


def require_same_space(image: Volume, other: Volume, name: str = "mask", tolerance: float = 10 * SAME) -> None:
    """Raise DataError if a mask (or channel) differs from its image in shape or position.

    Args:
        image, other: the two volumes.
        name: what ``other`` is, for the message.
        tolerance: in voxels, at the farthest corner.
    """
    own, wanted = other.geometry.shape, image.geometry.shape
    if own != wanted:
        raise DataError(f"{other.path}: the {name} has the shape {own}, and its image {image.path.name} has {wanted}")
    apart = corner_distance(image.geometry.affine, other.geometry.affine, wanted)
    if apart > tolerance:
        signs = [np.sign(np.diag(one.geometry.affine)[:3]).tolist() for one in (image, other)]
        flipped = "; it is flipped" if signs[0] != signs[1] else ""
        raise DataError(f"{other.path}: the {name} lies {apart:.3g} voxels from its image {image.path.name}{flipped}")


def require_labels(array: Array, labels: Sequence[int], path: Path) -> None:
    """Raise DataError if a label is not among ``labels``."""
    found = np.unique(array).tolist()
    others = [label for label in found if label not in set(labels)]
    if not others:
        return
    hint = "; 255 for the foreground? data.mapping={0: 0, 255: 1}" if found in ([0, 255], [255]) else ""
    known = ", ".join(map(str, labels[:10])) + (", ..." if len(labels) > 10 else "")
    raise DataError(f"{path}: holds the label {others[0]}, and those known are {known}{hint}")


# --- writing ---------------------------------------------------------------------------------------------------------


def write_volume(path: Path, array: Array, like: Volume) -> None:
    """Write an array with the affine and header of ``like``, bit for bit, and its file type unless ``path`` has another
    extension. The file is written completely or not at all.

    Args:
        path: with an extension of volumes.
        array: (C, X, Y, Z), or (X, Y, Z).
        like: the volume whose space the array is in.

    Raises:
        DataError: the array has another shape than the volume.
        OSError: the file cannot be written.
    """
    array = array[None] if array.ndim == 3 else array
    if array.shape[1:] != like.geometry.shape:
        raise DataError(
            f"{path}: {array.shape[1:]} voxels do not go into the space of {like.path}, {like.geometry.shape}"
        )
    if extension(path) in NIFTI:
        _write_nifti(path, array, like.geometry)
    else:
        _write_itk(path, array, like.geometry)


def _write_nifti(path: Path, array: Array, geometry: Geometry) -> None:
    need("nibabel")
    import nibabel

    stored = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    header = geometry.header.copy() if hasattr(geometry.header, "get_slope_inter") else None
    image = nibabel.Nifti1Image(stored, geometry.affine, header, dtype=stored.dtype)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"], image.header["cal_max"] = 0, 0  # the image's window, which is not the mask's
    if header is None:
        image.header.set_xyzt_units("mm")
    with replacing(path) as file:
        if extension(path) == ".nii":
            image.to_stream(file)
            return
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:  # the same bytes at any time
            image.to_stream(packed)


def _write_itk(path: Path, array: Array, geometry: Geometry) -> None:
    """Write the file plane by plane. SimpleITK can only write entire images, so it writes the header, for an image
    of one voxel; the numbers are compressed and written here."""
    kind, sides = extension(path), array.shape[1:]
    head = _itk_header(path, array, geometry)
    with tempfile.TemporaryFile(dir=path.parent) as packed:
        if kind == ".nrrd":
            with gzip.GzipFile("", "wb", 2, packed, mtime=0) as file:
                _write_planes(file.write, array)
        else:
            stream = zlib.compressobj(2)
            _write_planes(lambda plane: packed.write(stream.compress(plane)), array)
            packed.write(stream.flush())
        size = " ".join(map(str, sides)).encode()
        numbers = path.with_name(path.name[: -len(kind)] + ".zraw")
        if kind == ".nrrd":
            head = re.sub(rb"(?m)^sizes: (.*?)1 1 1$", rb"sizes: \g<1>" + size, head)
            space = geometry.header.get("space") if isinstance(geometry.header, dict) else None
            head = _with_space(space, head) if space else head
        else:
            head = re.sub(rb"(?m)^DimSize = .*$", b"DimSize = " + size, head)
            head = re.sub(rb"(?m)^CompressedDataSize = .*$", b"CompressedDataSize = %d" % packed.tell(), head)
        packed.seek(0)
        if kind == ".mhd":  # the numbers first, the header that names them last
            with replacing(numbers) as file:
                shutil.copyfileobj(packed, file)
            head = head.replace(b"= LOCAL\n", b"= " + os.fsencode(numbers.name) + b"\n")
        with replacing(path) as file:
            file.write(head)
            if kind != ".mhd":
                shutil.copyfileobj(packed, file)


def _write_planes(write: Callable[[bytes], Any], array: Array) -> None:
    """Write the numbers of (C, X, Y, Z) in ITK's order: little-endian, the channel and then the first axis change
    fastest."""
    for plane_index in range(array.shape[-1]):
        plane = array[..., plane_index].transpose(2, 1, 0)
        write(plane.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _itk_header(path: Path, array: Array, geometry: Geometry) -> bytes:
    """The header of a compressed MetaImage or NRRD file, up to its numbers, for an image with sides of 1."""
    need("SimpleITK")
    import SimpleITK as sitk  # noqa: N813

    vector = len(array) > 1
    one = np.zeros((1, 1, 1, len(array)) if vector else (1, 1, 1), dtype=array.dtype)
    image = sitk.GetImageFromArray(one, isVector=vector)
    origin, spacing, direction = itk_parts(geometry)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    if isinstance(geometry.header, dict):
        for key, value in geometry.header["entries"].items():
            if not key.startswith(("ITK_", "NRRD_space", "NRRD_kinds")):  # those are of the stored numbers
                image.SetMetaData(key, value)
    nrrd = extension(path) == ".nrrd"
    beside = temporary_name(path)
    beside = beside.with_name(beside.name + (".nrrd" if nrrd else ".mha"))
    try:
        sitk.WriteImage(image, os.fspath(beside), useCompression=True)
        written = beside.read_bytes()
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({line(error)[:200]})") from error
    finally:
        beside.unlink(missing_ok=True)
    mark = b"\n\n" if nrrd else b"ElementDataFile = LOCAL\n"
    return written[: written.index(mark) + len(mark)]


def itk_parts(geometry: Geometry) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Origin, spacing and direction for ITK: those of the file, or those of the affine."""
    if isinstance(geometry.header, dict):
        return geometry.header["origin"], geometry.header["spacing"], geometry.header["direction"]
    affine = LPS @ geometry.affine
    spacing = spacing_of(affine)
    direction = (affine[:3, :3] / np.asarray(spacing)).ravel().tolist()
    return tuple(affine[:3, 3].tolist()), spacing, tuple(direction)


_SPACE = (b"space directions:", b"space origin:")

MOST_HEADER = 1 << 20
"""The largest size of an NRRD header, in bytes."""


def _nrrd_space(path: Path) -> dict[bytes, list[bytes]]:
    """The vectors of an NRRD file's space as its header has them: the products of direction and spacing, which
    cannot be recovered bit for bit from the two that ITK computes."""
    with path.open("rb") as file:
        lines = file.read(MOST_HEADER).partition(b"\n\n")[0].splitlines()
    found = {key: line for line in lines for key in _SPACE if line.startswith(key)}
    return {key: _VECTOR.findall(line) for key, line in found.items()}


_VECTOR = re.compile(rb"\([^)]*\)")


def _with_space(space: dict[bytes, list[bytes]], head: bytes) -> bytes:
    """The header of an NRRD file with these vectors."""
    lines = []
    for entry in head.split(b"\n"):
        vectors = next((vectors for key, vectors in space.items() if entry.startswith(key)), [])
        pieces = _VECTOR.split(entry)
        same = bool(vectors) and len(vectors) == len(pieces) - 1
        lines.append(b"".join(map(b"".join, zip(pieces, [*vectors, b""], strict=True))) if same else entry)
    return b"\n".join(lines)
