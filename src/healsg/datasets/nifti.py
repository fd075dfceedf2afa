"""Your own volumes with masks: folders of NIfTI, MetaImage and NRRD files, MSD and MONAI lists, nnU-Net's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from healsg.data.base import Needs
from healsg.data.case import Case
from healsg.data.info import DataInfo
from healsg.data.loader import Loader, Transform
from healsg.data.source import About, DatasetSource, line
from healsg.datasets.masks.survey import Survey, survey_volumes
from healsg.datasets.published.files import locate, log
from healsg.datasets.segmentation import Segmentation, labels_of, require_onto
from healsg.datasets.volumes import lists as volume_lists
from healsg.datasets.volumes.cases import Intensity, Preparation, PreparedCases, flat_files, labels_in, steps_of_file
from healsg.datasets.volumes.files import FLAT, Trusted, read_geometry, spacing_of
from healsg.errors import ConfigError
from healsg.transforms.volume import VolumeTransform
from healsg.transforms.volume_views import VolumeAugment, VolumeViews
from healsg.types import Count, Finite, Fraction, NonNegative


class Volumes(Segmentation):
    """What sets of volumes share. A subclass gives ``found``, the cases with their splits.

    A case is read, reoriented, cropped, resampled and scaled on access; with ``cache=true``, once. Metrics are computed
    in the common space.

    Args:
        classes: names of the classes in the order of their labels, the background first; None takes those of a list,
            else the labels that the training masks hold, for which all of them are read.
        mapping: from the labels of the files to 0, 1, 2, ...; None maps those that are found in their order.
        spacing: of the common space, in mm along the turned axes; null, or 0 along an axis, keeps each volume's own.
        orient: turn all volumes to RAS.
        intensity: ``zscore`` (MR), ``window`` (CT) or ``none``.
        window: the two intensities that become 0 and 1 with ``intensity=window``.
        crop: cut away what is not above this intensity; None keeps all.
        trust: of a file whose sform and qform disagree: ``sform`` or ``qform``; ``agreeing`` refuses it.
        augment: of training patches: ``standard`` flips them, ``nnunet`` also rotates, scales and changes intensities,
            ``none`` does nothing.
        flip: flip training patches along each axis at random.
        patch: see ``Segmentation``.
        foreground: see ``Segmentation``.
        batch_size: patches per batch, summed over all processes.
        eval_batch_size: volumes per evaluation batch; their sizes differ.
        common: the arguments of Segmentation.
    """

    def __init__(
        self,
        classes: list[str] | None = None,
        mapping: Mapping[int, int] | None = None,
        spacing: list[NonNegative] | None = None,
        orient: bool = True,
        intensity: Intensity = "zscore",
        window: list[Finite] | None = None,
        crop: Finite | None = None,
        trust: Trusted = "agreeing",
        augment: VolumeAugment = "standard",
        flip: bool = True,
        patch: Sequence[Count] | None = (64, 64, 64),
        foreground: Fraction = 0.33,
        batch_size: Count = 2,
        eval_batch_size: Count | None = 1,
        **common: Any,
    ) -> None:
        usual: dict[str, Any] = {"patch": patch, "foreground": foreground if patch else 0.0}
        super().__init__(**usual, batch_size=batch_size, eval_batch_size=eval_batch_size, **common)
        if intensity == "window" and (window is None or len(window) != 2 or not window[0] < window[1]):
            raise ConfigError(f"data.window: {window}; intensity=window needs two intensities, such as [-200, 300]")
        if spacing is not None and (len(spacing) != 3 or min(spacing) < 0):
            raise ConfigError(f"data.spacing: {spacing}; give the size of a voxel along three axes, in mm")
        self.classes = classes
        require_onto(mapping, self.ignore)
        self.mapping = mapping
        self.augment = augment
        self.flip = flip and augment != "none"
        self._saved: DataInfo | None = None
        low, high = window or (0.0, 1.0)
        self.plain = Preparation(
            None if spacing is None else tuple(spacing), orient, intensity, (low, high), crop, {}, self.ignore, trust
        )

    def found(self) -> volume_lists.CaseList:
        """The cases; those without a split are of the training part. Raises DataError."""
        raise NotImplementedError

    @cached_property
    def _found(self) -> volume_lists.CaseList:
        return self.found()

    def part(self, name: str) -> list[volume_lists.CaseFiles]:
        """The cases of a part."""
        return [case for case in self._found.cases if (case.split or "train") == name]

    @cached_property
    def _labels(self) -> tuple[int, ...]:
        """One label of the files for each class, in their order."""
        if self.mapping is not None:
            return labels_of(self.mapping)
        known = self._found.labels
        if not known and self.classes:
            return tuple(range(len(self.classes)))
        if not known and (saved := self._saved_labels):
            return saved
        labels = tuple(sorted(known)) or labels_in(self.part("train"), self.plain)
        if labels != tuple(range(len(labels))):
            log.info("data: labels %s are the classes 0 to %d", ", ".join(map(str, labels)), len(labels) - 1)
        return labels

    @property
    def _saved_labels(self) -> tuple[int, ...]:
        """The labels of the files that weights were trained on, in the order of their classes; empty without such."""
        labels = self._saved.preprocessing.get("labels") if self._saved is not None else None
        return tuple(labels) if isinstance(labels, list) and all(type(label) is int for label in labels) else ()

    def restored(self, saved: DataInfo) -> Volumes:
        """The same volumes with the labels and names of ``saved`` where neither settings nor a list give others; masks
        may hold fewer. Raises DataError."""
        made = self.as_new(_saved=saved)
        super(Volumes, made).restored(saved)
        return made

    @property
    def preparation(self) -> Preparation:
        """How volumes become inputs and masks targets."""
        if self.mapping is not None:
            mapping = dict(self.mapping)
        else:
            mapping = {label: label if self.regions else index for index, label in enumerate(self._labels)}
        plain = self.plain
        fields = (plain.spacing, plain.orient, plain.intensity, plain.window, plain.crop)
        return Preparation(*fields, mapping, plain.ignore, plain.trust)

    @cached_property
    def _first(self) -> tuple[int, tuple[int, ...]]:
        """The channels of the first case, and the sides of a patch or, without patches, of that case."""
        images = self._found.cases[0].images
        channels = len(images) if len(images) > 1 else read_geometry(images[0], self.plain.trust).channels
        return channels, self.patch or steps_of_file(images[0], self.plain).new_shape

    def described(self) -> DataInfo:
        labels = self._labels
        names = self.classes or [self._found.labels.get(label, str(label)) for label in labels]
        if self._saved is not None and not self.classes and not self._found.labels and self._saved_labels == labels:
            names = list(self._saved.class_names) or names
        count = len(set(self.mapping.values())) if self.mapping is not None else len(labels)
        if len(names) != count and not self.regions:
            raise ConfigError(f"data.classes: {len(names)} names for {count} labels {list(labels)}")
        channels, sides = self._first
        plain = self.plain
        facts: dict[str, Any] = {"orient": plain.orient, "intensity": plain.intensity, "labels": list(labels)}
        facts |= {"spacing": list(plain.spacing)} if plain.spacing else {}
        facts |= {"window": list(plain.window)} if plain.intensity == "window" else {}
        facts |= {"crop": plain.crop} if plain.crop is not None else {}
        facts |= {"trust": plain.trust} if plain.trust != "agreeing" else {}
        return DataInfo((channels, *sides), count, class_names=tuple(names), preprocessing=facts)

    def survey(self) -> Survey:
        return survey_volumes(self.part("train"), self.plain, self._found.channels)

    @property
    def has_val(self) -> bool:
        return bool(self.part("val"))

    @property
    def has_test(self) -> bool:
        return any(case.label is not None for case in self.part("test"))

    def loaders(self, needs: Needs) -> dict[str, Loader]:
        loaders = super().loaders(needs)
        if flat := flat_files(self._found.cases, self.plain.trust):
            log.info("data: %d files are %s, such as %s", len(flat), FLAT, line(str(flat[0])))
        return loaders

    def read(self, part: str) -> DatasetSource | None:
        cases = [case for case in self.part(part) if case.label is not None]
        if not cases:
            return None
        preparation = self.preparation
        about = []
        for case in cases:
            steps = steps_of_file(case.images[0], preparation)
            group = str(case.entry.get("group", case.entry.get("patient", "")))
            rows = tuple(tuple(row) for row in steps.affine.tolist())
            where = (rows, spacing_of(steps.affine), str(case.images[0]), steps.new_shape)
            about.append(Case(case.name, group, *where))
        return DatasetSource(PreparedCases(cases, preparation), about=About(about))

    def transform(self, view: str, split: str) -> Transform:
        channels = self.info.input_shape[0]
        standard = VolumeTransform(self.flip, 0, (0.0,) * channels, (1.0,) * channels, maximum=1.0)
        return VolumeViews(self.augment, standard, self.ignore or 0).of(view, split)


class Nifti(Volumes):
    """Volumes and masks of a folder, paired by name: ``images/`` and ``labels/``, or ``NAME`` and ``NAME_seg``. Folders
    ``train``, ``val`` and ``test`` that hold such are the parts.

    Args:
        folder: relative to the current directory or else to ``root``.
        common: the arguments of Volumes.
    """

    def __init__(self, folder: str, **common: Any) -> None:
        super().__init__(**common)
        self.folder = folder

    def found(self) -> volume_lists.CaseList:
        folder = locate("folder", self.folder, (self.start, self.root), "folder")
        parts = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
        if "train" not in parts:
            return volume_lists.CaseList(volume_lists.paired(folder))
        cases = []
        for name, inner in parts.items():
            cases += [
                volume_lists.CaseFiles(one.name, one.images, one.label, name) for one in volume_lists.paired(inner)
            ]
        return volume_lists.CaseList(tuple(cases))


class Decathlon(Volumes):
    """Volumes of an MSD ``dataset.json`` or of a MONAI data list; see ``volume_lists.decathlon``.

    Args:
        list: the file, relative to the current directory or else to ``root``.
        folder: to which the files in it are relative; None is the list's own folder.
        common: the arguments of Volumes.
    """

    def __init__(self, list: str, folder: str | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.list, self.folder = list, folder

    def found(self) -> volume_lists.CaseList:
        candidates = (self.start, self.root)
        folder = None if self.folder is None else locate("folder", self.folder, candidates, "folder")
        inside = () if folder is None else (folder,)
        return volume_lists.decathlon(locate("list", self.list, (*candidates, *inside), "file"), folder)


class NnunetRaw(Volumes):
    """Volumes of nnU-Net's raw layout with its labels, regions and ``ignore``; see ``volume_lists.nnunet_raw``.

    Args:
        folder: such as ``Dataset004_Hippocampus``, relative to the current directory or else to ``root``.
        nnunet_fold: the fold of ``splits_final.json`` that is for validation, from 0; None leaves it to
        ``val_fraction``.
        common: the arguments of Volumes.
    """

    def __init__(self, folder: str, nnunet_fold: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.folder, self.nnunet_fold = folder, nnunet_fold

    def found(self) -> volume_lists.CaseList:
        folder_path = locate("folder", self.folder, (self.start, self.root), "folder")
        whole = volume_lists.nnunet_raw(Path(folder_path))
        if whole.regions and dict(whole.regions) != self.regions:
            detail = ", ".join(f"{name}: {list(labels)}" for name, labels in whole.regions.items())
            raise ConfigError(f"data.regions: dataset.json has regions; say so with 'data.regions={{{detail}}}'")
        if whole.ignore is not None and whole.ignore != self.ignore:
            raise ConfigError(f"data.ignore: dataset.json ignores a label; say so with data.ignore={whole.ignore}")
        if self.nnunet_fold is None:
            return whole
        if not 0 <= self.nnunet_fold < len(whole.folds):
            raise ConfigError(
                f"data.nnunet_fold: {self.nnunet_fold}, and splits_final.json has {len(whole.folds)} folds, from 0"
            )
        train, val = whole.folds[self.nnunet_fold]
        split = {**dict.fromkeys(train, "train"), **dict.fromkeys(val, "val")}
        cases = [
            volume_lists.CaseFiles(
                one.name, one.images, one.label, split[one.name] if one.split == "train" else one.split
            )
            for one in whole.cases
            if one.split != "train" or one.name in split
        ]
        return volume_lists.CaseList(
            tuple(cases), whole.labels, whole.channels, whole.regions, whole.ignore, whole.folds
        )
