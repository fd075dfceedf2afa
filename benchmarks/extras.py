"""Does each extra of HEALSg install beside it? Each is resolved by pip, what is missing is put aside and imported.

    python -m benchmarks.extras [EXTRA ...] [--fresh]     (needs pip; installs nothing into this environment;
                                                           results/extras.txt)

For each extra pip says what it would install here without taking anything away that is there; that goes into a folder
which is removed again, and a fresh process imports the packages of the extra beside healsg and its loggers. The exit
status is 1 where one cannot be resolved or imported. ``--fresh`` resolves as in an empty environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

MODULES = {
    "tensorboard": ["tensorboard", "healsg.loggers.tensorboard"],
    "swanlab": ["swanlab", "healsg.loggers.swanlab"],
    "mat": ["scipy.io"],
    "hf": ["datasets", "pyarrow"],
    "torchmetrics": ["torchmetrics"],
    "search": ["optuna"],
    "submitit": ["submitit"],
    "ray": ["ray"],
    "timm": ["timm", "safetensors"],
    "seg": ["monai", "nibabel", "SimpleITK", "einops"],
    "smp": ["segmentation_models_pytorch"],
    "export": ["onnx", "onnxruntime", "onnxscript"],
    "serve": ["starlette", "uvicorn", "python_multipart", "healsg.serving.app"],
    "docs": ["mkdocs", "material"],
}
"""By extra what is imported of it."""


def resolved(extra: str, fresh: bool, folder: Path) -> list[str]:
    """What pip would install for an extra, as ``name==version``. Raises CalledProcessError where it finds no set."""
    report = folder / f"{extra}.json"
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    line += ["--ignore-installed"] * fresh + ["--report", str(report), f"{ROOT}[{extra}]"]
    subprocess.run(line, check=True, capture_output=True, text=True)
    wanted = json.loads(report.read_text())["install"]
    packages = [(one["metadata"]["name"], one["metadata"]["version"]) for one in wanted]
    return [f"{name}=={version}" for name, version in packages if name != "healsg"]


def imported(extra: str, packages: list[str], folder: Path) -> str:
    """Put packages into a folder and import the extra there; an error as text, empty where there is none."""
    target = folder / "packages"
    if packages:
        line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *packages]
        subprocess.run(line, check=True, capture_output=True, text=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(ROOT / "src")])}
    code = "import healsg, wandb; import " + ", ".join(MODULES[extra])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def main(arguments: list[str]) -> int:
    """Try the extras that are named, or all."""
    fresh = "--fresh" in arguments
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(MODULES) == set(known) - {"dev"}
    failed = 0
    for extra in [name for name in arguments if name != "--fresh"] or list(MODULES):
        with tempfile.TemporaryDirectory() as place:
            try:
                packages = resolved(extra, fresh, Path(place))
                error = "" if fresh else imported(extra, packages, Path(place))
            except subprocess.CalledProcessError as broken:
                packages, error = [], broken.stderr.strip().splitlines()[-1]
        told = f"{len(packages)} packages" if fresh else f"beside what is here: {', '.join(packages) or 'nothing'}"
        done = "resolved" if fresh else "resolved, imported"
        print(f"{extra:14}{f'FAILED: {error}' if error else f'{done}; {told}'}", flush=True)
        failed += bool(error)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
