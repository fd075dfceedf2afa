"""Which sample keeps a batch from being joined, and how it differs from the others; called after an error alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

FIELDS = ("input", "target", "extra")
"""What the entries of a sample or batch without names, such as a tuple, are called, in their order."""

Form = tuple[tuple[str, str], ...] | str
"""The fields of a sample by name, each with its type and shape in words; the type of what has no fields."""


class Odd(NamedTuple):
    """A sample that cannot be joined with the others."""

    place: int
    """Its place among the samples."""
    reason: str
    """Why, in words."""
    others_agree: bool
    """Whether most of the others have one form, so that this sample is the wrong one."""


def odd_one(samples: Sequence[Any], join: Callable[[list[Any]], Any]) -> Odd | None:
    """The first sample that cannot be joined; None if no single sample is the cause.

    The form that most samples have is taken for the right one. Samples may differ in form if ``join`` accepts that, so
    only those count that it refuses, alone or together with one of the right form.
    """
    forms = [_form(sample) for sample in samples]
    usual, count = Counter(forms).most_common(1)[0]
    reference = samples[forms.index(usual)]
    agree = 2 * count > len(samples)
    others = "in the others" if agree else "in another one"
    for place, form in enumerate(forms):
        if form != usual and _fails(join, [reference, samples[place]]):
            return Odd(place, _difference(form, usual, others), agree)
    for place, sample in enumerate(samples):
        if error := _fails(join, [sample]):
            return Odd(place, " ".join(f"{type(error).__name__}: {error}".split()), agree)
    return None


def _fails(join: Callable[[list[Any]], Any], samples: list[Any]) -> Exception | None:
    try:
        join(samples)
    except Exception as error:  # of any collate function
        return error
    return None


def _form(sample: Any) -> Form:
    if isinstance(sample, Mapping):
        return tuple((str(name), _in_words(value)) for name, value in sample.items())
    if isinstance(sample, (tuple, list)):
        names = [*FIELDS, *(f"item {place}" for place in range(len(FIELDS), len(sample)))]
        return tuple((name, _in_words(value)) for name, value in zip(names, sample, strict=False))
    return _in_words(sample)


def _in_words(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        shape = "x".join(map(str, value.shape)) or "no dimension"
        return f"a {'tensor' if isinstance(value, Tensor) else 'array'} of {shape}"
    return "None" if value is None else type(value).__name__


def _difference(form: Form, usual: Form, others: str) -> str:
    if isinstance(form, str) or isinstance(usual, str):
        found, expected = (one if isinstance(one, str) else ", ".join(name for name, _ in one) for one in (form, usual))
        return f"it is {found}, and {expected} {others}"
    fields, expected_fields = dict(form), dict(usual)
    if missing := [name for name in expected_fields if name not in fields]:
        return f"it has no {missing[0]}, unlike the others"
    if added := [name for name in fields if name not in expected_fields]:
        return f"it has {added[0]}, unlike the others"
    name = next(name for name in fields if fields[name] != expected_fields[name])
    return f"its {name} is {fields[name]}, and {expected_fields[name]} {others}"
