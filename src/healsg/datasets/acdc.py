"""ACDC: cine MR of 100 patients with masks of the heart's chambers at two phases each.

Source: O. Bernard et al., "Deep Learning Techniques for Automatic MRI Cardiac Multi-structures Segmentation and
Diagnosis", IEEE TMI 2018, https://doi.org/10.1109/TMI.2018.2837502. The files are as the challenge gives them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from healsg.datasets.listed import Listed
from healsg.datasets.nifti import Volumes
from healsg.datasets.published.files import locate, log
from healsg.datasets.volumes.files import stem
from healsg.datasets.volumes.lists import CaseFiles, CaseList, volumes_in
from healsg.errors import ConfigError, DataError
from healsg.types import Count

LABELS = {0: "background", 1: "RV", 2: "MYO", 3: "LV"}

# SSL4MIS (https://github.com/HiLab-git/SSL4MIS, data/ACDC/train.list, val.list, test.list), in the order of its lists:
# the labelled patients of its scripts are the first ones of the training list.
SSL4MIS = {
    "train": (
        *(99, 38, 50, 100, 58, 21, 49, 20, 72, 40, 60, 89, 4, 56, 98, 96, 31, 18, 94, 47, 48, 55, 97, 74, 43, 41, 63),
        *(37, 95, 54, 26, 88, 32, 69, 6, 71, 12, 73, 61, 17, 25, 10, 57, 29, 51, 5, 36, 46, 62, 34, 76, 92, 70, 77),
        *(67, 3, 91, 16, 14, 44, 42, 90, 53, 27, 35, 86, 23, 9, 79, 15),
    ),
    "val": (28, 85, 82, 87, 19, 30, 78, 45, 2, 39),
    "test": (11, 13, 84, 33, 93, 22, 68, 24, 83, 81, 80, 1, 7, 66, 8, 65, 75, 64, 59, 52),
}
"""The 100 patients by part."""


class Acdc(Volumes, Listed):
    """The volumes ``patient001/patient001_frame01.nii.gz`` and their masks ``..._gt.nii.gz``, at the ends of diastole
    and systole. Each is a case, and its patient a group (``data.group=patient``).

    Args:
        folder: that holds ``training/`` (and ``testing/``), or the patients' folders themselves.
        parts: ``ssl4mis`` splits the 100 training patients into its 70, 10 and 20, and ``labels=N`` keeps the masks of
            the first N patients of its list, both phases of each. ``published`` has the training patients for training
            and those of ``testing/`` as the test part; validation holds out whole patients.
        labels: see ``parts``; with ``published`` it counts volumes, as in other sets.
        common: the arguments of Volumes.
    """

    def __init__(
        self,
        folder: str,
        parts: Literal["ssl4mis", "published"] = "ssl4mis",
        labels: Count | None = None,
        **common: Any,
    ) -> None:
        if parts == "published" and (common.get("fold") or common.get("val_fraction", 0.1)):
            common["group"] = common.get("group") or "patient"  # both phases of a heart lie on one side
        super().__init__(labels=labels, **common)
        self.folder, self.parts = folder, parts
        if parts == "ssl4mis" and labels is not None and labels > len(SSL4MIS["train"]):
            raise ConfigError(f"data.labels: {labels}; parts=ssl4mis trains on {len(SSL4MIS['train'])} patients")

    def found(self) -> CaseList:
        folder = locate("folder", self.folder, (self.start, self.root), "folder")
        training = folder / "training" if (folder / "training").is_dir() else folder
        cases = _patients(training, "train")
        if self.parts == "ssl4mis":
            cases = self._split(cases, training)
        elif (folder / "testing").is_dir():
            cases += _patients(folder / "testing", "test")
        return CaseList(tuple(cases), LABELS)

    def _split(self, cases: list[CaseFiles], folder: Path) -> list[CaseFiles]:
        """The cases in the order and with the parts of SSL4MIS. Raises DataError without a labelled patient."""
        of_patient: dict[str, list[CaseFiles]] = {}
        for case in cases:
            of_patient.setdefault(case.entry["patient"], []).append(case)
        part_of = {_patient(number): part for part, numbers in SSL4MIS.items() for number in numbers}
        missing = [name for name in part_of if name not in of_patient]
        if missing:
            needed = (self.listed() or set()) & set(missing)
            if needed:
                raise DataError(f"{folder / min(needed)}: there is no such patient, whose masks data.labels keeps")
            log.warning("data: %d of 100 patients are not in %s, such as %s", len(missing), folder, missing[0])
        return [
            CaseFiles(case.name, case.images, case.label, part, case.entry)
            for name, part in part_of.items()
            for case in of_patient.get(name, [])
        ]

    def listed(self) -> set[str] | None:
        if self.parts != "ssl4mis" or self.labels is None:
            return None
        return {_patient(number) for number in SSL4MIS["train"][: self.labels]}


def _patient(number: int) -> str:
    return f"patient{number:03}"


def _patients(folder: Path, part: str) -> list[CaseFiles]:
    """The volumes with masks of all ``patientNNN`` in a folder. Raises DataError if there are none."""
    cases = []
    for patient in sorted(one for one in folder.iterdir() if re.fullmatch(r"patient\d{3}", one.name) and one.is_dir()):
        files = {stem(path): path for path in volumes_in(patient)}
        for name, path in files.items():
            if re.fullmatch(r"patient\d{3}_frame\d\d", name) and f"{name}_gt" in files:
                cases.append(CaseFiles(name, (path,), files[f"{name}_gt"], part, {"patient": patient.name}))
    if not cases:
        raise DataError(f"{folder}: there is no patient001/patient001_frame01.nii.gz with a mask ..._gt.nii.gz in it")
    return cases
