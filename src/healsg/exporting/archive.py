"""``predict.py`` of an archive: ``program.py``, with what loads the network in the format of the archive."""

from __future__ import annotations

from importlib.resources import files

ONNX = """\
    import onnxruntime

    session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"input": batch})[0]
"""
"""The part of the program that another format replaces."""

PT2 = """\
    import torch

    module = torch.export.load(FOLDER / "model.pt2").module()
    return lambda batch: module(torch.from_numpy(batch)).detach().numpy()
"""


def program(to: str) -> str:
    """The text of ``predict.py`` for a format, ``onnx`` or ``pt2``."""
    text = files("healsg.exporting").joinpath("program.py").read_text(encoding="utf-8")
    if to == "onnx":
        return text
    before, found, after = text.partition(ONNX)
    assert found, "the part that is replaced is a part of program.py"
    return before.replace("pillow and onnxruntime", "pillow and torch") + PT2 + after


def mask_program(to: str, name: str = "segment.py") -> str:
    """The text of ``segment.py``, which lies beside ``predict.py`` where outputs are masks, or of ``volumes.py``, which
    lies beside both where these are of volumes."""
    text = files("healsg.exporting").joinpath(name).read_text(encoding="utf-8")
    return text if to == "onnx" else text.replace("pillow and onnxruntime", "pillow and torch")
