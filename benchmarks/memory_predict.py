"""The memory of predicting one large volume: python -m benchmarks.memory_predict [SIDE]

A drawn float32 volume of SIDE (400: 256 MB) voxels along each axis is written uncompressed, and a small U-Net (width 4,
windows of 32^3, no overlap, not trained) predicts its mask in a process of its own: a ``.nii`` at the volume's spacing,
a ``.mha`` at another one. What is counted is the largest RssAnon while the mask is made, above that of the process at
rest: after a tiny volume of the same kind; before it, with the libraries that read such files loaded, which adds what
the first windows leave behind; and with the network alone, which adds what the libraries take. The bar is a quarter of
the volume's bytes. Two further processes tell where it lies: the same prediction with a function that copies its
windows in the place of the network, beside what ``healsg predict`` says before; and the network alone, on 256 windows
of noise. Written to ``results/memory_predict.txt``, of another
SIDE to ``results/memory_predict_SIDE.txt``.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.memory_saving import Watch, resident

if TYPE_CHECKING:
    from healsg.datasets.new_samples.segmenter import Segmenter

SIDE = 400

CASES = [(".nii", None), (".mha", 1.25)]
"""Kind of file, and spacing of the common space; the volume's own is 1 mm."""


def write_scan(path: Path, side: int) -> None:
    """A volume of noise around a bright ball, float32, written plane by plane where the kind allows."""
    from healsg.datasets.volumes.files import Geometry, Volume, write_volume

    image = np.random.default_rng(0).standard_normal((1, side, side, side), dtype=np.float32)
    image[:, side // 4 : side // 2, side // 4 : side // 2] += 2
    write_volume(path, image, Volume(path, image, Geometry((side,) * 3, np.eye(4), 1, image.dtype, None)))
    if path.suffix == ".mha":
        import SimpleITK as sitk  # noqa: N813

        sitk.WriteImage(sitk.ReadImage(os.fspath(path)), os.fspath(path), useCompression=False)


def train(folder: Path, spacing: float | None) -> None:
    """A run of one update on tiny volumes."""
    from healsg import TaskTrainer
    from healsg.datasets.volumes.files import Geometry, Volume, write_volume

    for number in range(4):
        for what, kind in (("images", np.float32), ("labels", np.uint8)):
            path = folder / "tiny" / what / f"case{number}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = (np.random.default_rng(number).random((1, 32, 32, 32)) > 0.5).astype(kind)
            write_volume(path, array, Volume(path, array, Geometry((32,) * 3, np.eye(4), 1, array.dtype, None)))
    settings = ["data=nifti", "data.folder=tiny", "data.patch=[32,32,32]", "data.workers=0", "data.val_fraction=0.25"]
    settings += ["model=unet", "model.width=4", "model.overlap=0", "runner=debug", "runner.steps=1", "quiet=true"]
    settings += [f"data.spacing=[{spacing},{spacing},{spacing}]"] if spacing else []
    TaskTrainer.compose(*settings, f"name=run{spacing}").train()


WINDOWS = 256


def segmenter_of(run: str) -> Segmenter:
    """The network of a run, on one thread."""
    from healsg import TaskTrainer
    from healsg.datasets.new_samples.segmenter import Segmenter

    torch.set_num_threads(1)
    return Segmenter([(run, TaskTrainer.load(run).predictor())])


def load_reader(path: Path) -> None:
    import_module("nibabel" if path.suffix == ".nii" else "SimpleITK")


def measure(run: str, file: str) -> None:
    """The line of one prediction."""
    from healsg.datasets.new_samples.mask_files import Scan

    segmenter = segmenter_of(run)
    bare, path = resident(), Path(file)
    load_reader(path)
    loaded = resident()
    write_scan(tiny := path.with_name(f"tiny-{run}{path.suffix}"), 36)
    segmenter.write(Scan((tiny,), Path(tiny.name)), Path("masks") / tiny.name)
    idle, began = resident(), time.process_time()
    with Watch() as watch:
        facts = segmenter.write(Scan((path,), Path(path.name)), Path("masks") / path.name)
    size = 4 * int(np.prod(facts["shape"]))
    added = watch.most - idle
    whole = f"{(watch.most - loaded) / 1e6:.1f} MB above it before any volume"
    print(
        f"{path.name} {run}: volume {size / 1e6:.0f} MB, {added / 1e6:.1f} MB above the idle process, "
        f"{added / size:.3f} of the volume (bar 0.25); {whole}, "
        f"{(watch.most - bare) / 1e6:.1f} MB before its library is loaded ({(loaded - bare) / 1e6:.1f} MB); "
        f"{time.process_time() - began:.0f} CPU s",
        flush=True,
    )


def measure_rest(run: str, file: str) -> None:
    """The line of a prediction that takes the network's outputs for granted."""
    from healsg.datasets.new_samples.mask_files import Scan

    segmenter = segmenter_of(run)
    segmenter.scores = lambda batch: torch.cat([batch, -batch], dim=1)
    path = Path(file)
    load_reader(path)
    scan, idle = Scan((path,), Path(path.name)), resident()
    with Watch() as watch:
        segmenter.write(scan, Path("masks") / path.name)
    told = segmenter.needs(scan)[0] / 1e6
    print(f"    without the network: {(watch.most - idle) / 1e6:.1f} MB, told before: {told:.1f} MB", flush=True)


def measure_network(run: str) -> None:
    """The line of the network alone."""
    segmenter = segmenter_of(run)
    bare = resident()
    with Watch() as watch, torch.inference_mode():
        for _ in range(WINDOWS):
            segmenter.predicted(torch.rand(1, *segmenter.info.input_shape))
    print(f"    the network alone, {WINDOWS} windows: {(watch.most - bare) / 1e6:.1f} MB", flush=True)


def main() -> None:
    if len(sys.argv) > 3:
        measure_rest(sys.argv[1], sys.argv[2]) if sys.argv[3] == "rest" else measure_network(sys.argv[1])
        return
    if len(sys.argv) > 2:
        measure(sys.argv[1], sys.argv[2])
        return
    side = int(sys.argv[1]) if len(sys.argv) > 1 else SIDE
    lines = []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "masks").mkdir()
        os.chdir(folder)
        for spacing in (None, 1.25):
            train(folder, spacing)
        for kind, spacing in CASES:
            write_scan(folder / f"scan{kind}", side)
            command = [sys.executable, "-m", "benchmarks.memory_predict", f"run{spacing}", f"scan{kind}"]
            for what in ([], ["rest"], ["network"]):
                line = [*command, *what]
                lines.append(subprocess.run(line, check=True, capture_output=True, text=True, env=environment).stdout)
                print(lines[-1], end="", flush=True)
        os.chdir("/")
    where = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread, no GPU"
    text = "\n".join([f"python -m benchmarks.memory_predict {side}", where, "", *map(str.rstrip, lines), ""])
    name = "memory_predict.txt" if side == SIDE else f"memory_predict_{side}.txt"
    (Path(__file__).parent / "results" / name).write_text(text)


if __name__ == "__main__":
    main()
