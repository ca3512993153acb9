"""Match the classes of a data set with a model's classes.

The export, the check and the evaluation share this matching. It tries these rules in order, and never guesses:

1. `--synsets` gives the WordNet id of each class of the model: match by it.
2. All of the data's class names are among the model's labels: by name. Where they are not, letter case, spaces and
   punctuation are left out of account (`great_white_shark`), unless that makes two classes one: ImageNet has a
   `Cardigan`, which is a dog, and a `cardigan`, which is none.
3. All are WordNet ids, a thousand of them, and the model has a thousand classes: in sorted order. That is ImageNet's
   order of classes wherever folders were sorted to number them: torchvision's ImageNet is an ImageFolder of WordNet ids
   (torchvision/datasets/imagenet.py), Keras' `imagenet_class_index.json` and Kaggle's `LOC_synset_mapping.txt` list
   them so. Of fewer nothing says which they are.
4. All are whole numbers below the number of classes: by number, so that 10 comes after 2. Where the least is 1 and the
   largest the number of classes they count from 1, in an order that is not said: the devkit of ILSVRC2012 numbers its
   synsets in an order of its own (its readme.txt, `ILSVRC2012_ID`), and that is what
   `ILSVRC2012_validation_ground_truth.txt` holds. Folders of a model without labels are no numbers for certain:
   torchvision's ImageFolder sorts them as text, where 10 comes before 2, and a model that was trained so calls the
   folder 10 its class 2. Where the two differ, nothing says which it is. (A file with a number for each picture holds
   indices.)
5. The model has no labels, and there are as many class names as classes: in their order, which for folders is
   torchvision's ImageFolder's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.data import ImageSource
from calibration.synsets import WORDNET_ID
from runtimes.errors import BadInput

NUMBER = re.compile(r"[0-9]{1,9}")
IMAGENET_CLASSES = 1000
SHOWN = 3


@dataclass(frozen=True)
class ModelClasses:
    """What is known of a model's classes.

    Attributes:
        count: how many there are.
        labels: their names, of which some may be equal; None if unknown.
        synsets: their WordNet ids, all different; None if unknown.
    """

    count: int
    labels: tuple[str, ...] | None = None
    synsets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Matching:
    """The model's class index for each class of the data, and how they were matched, in words."""

    indices: tuple[int, ...]
    how: str


class MatchedSource(NamedTuple):
    """A source whose labels are the model's class indices, and how they were matched, in words."""

    source: ImageSource
    how: str


class KnownLabels(NamedTuple):
    """The model's class of each picture, int64 (pictures,), or None with the reason; no reason if none are expected."""

    labels: NDArray[np.int64] | None
    why_none: str


def match_source(source: ImageSource, model: ModelClasses) -> MatchedSource:
    """Replace a source's labels by the model's class indices.

    The result's `classes` are those of the model: its labels or, if it has none, the data's own names, and numbers for
    the rest.

    Raises:
        BadInput: the pictures have no labels, or it is not certain which classes of the model they are.
    """
    if source.labels is None:
        beside = next((f"'{name}' in no folder" for name in source.names or () if "/" not in name), "none")
        raise BadInput(
            f"expected a class for each picture of {source.name}, got {beside}; put the pictures in a folder for each "
            "class and nothing beside, or give resnet-deploy eval --data-labels"
        )
    names = [str(place) for place in range(model.count)]
    if source.classes is None:
        if model.synsets is not None:
            raise BadInput(
                f"--synsets is for classes that are WordNet ids, and those of {source.name} are numbers; leave it out"
            )
        _check_numbers({int(label) for label in source.labels}, model.count, source.name)
        return MatchedSource(replace(source, classes=model.labels or tuple(names)), "by number")
    matching = match_classes(source.classes, model, source.name, folders=_are_folders(source))
    for index, name in zip(matching.indices, source.classes, strict=True):
        names[index] = name
    labels = np.array(matching.indices, np.int64)[source.labels]
    return MatchedSource(replace(source, labels=labels, classes=model.labels or tuple(names)), matching.how)


def labels_or_reason(source: ImageSource, model: ModelClasses) -> KnownLabels:
    """The model's class of each picture or, if the classes cannot be matched, why not.

    No reason is given where nobody would expect classes: for a model of features, and for pictures in no subfolders.
    """
    if model.count == 0 or (source.labels is None and all("/" not in name for name in source.names or ())):
        return KnownLabels(None, "")
    try:
        return KnownLabels(match_source(source, model).source.labels, "")
    except BadInput as error:
        return KnownLabels(None, str(error))


def match_classes(names: Sequence[str], model: ModelClasses, where: str, *, folders: bool = True) -> Matching:
    """Match class names, all different, with the model's classes; `where` is named in errors.

    Args:
        folders: the names are folders, so that a whole number may be a name or a class index; otherwise it is an index.

    Raises:
        BadInput: they cannot be matched for certain; shows names of both sides, and says what would help.
    """
    if model.synsets is not None:
        return _by_synset(names, model, where)
    if model.labels is not None and (found := _by_name(names, model.labels, where)):
        return found
    if all(WORDNET_ID.fullmatch(name) for name in names) and len(names) == model.count == IMAGENET_CLASSES:
        rank = {name: place for place, name in enumerate(sorted(names))}
        return Matching(tuple(rank[name] for name in names), "by the sorted order of their WordNet ids")
    if all(NUMBER.fullmatch(name) for name in names):
        numbers = [int(name) for name in names]
        _check_numbers(numbers, model.count, where)
        if folders and model.labels is None:
            _check_same_as_text(names, model.count, where)
        return Matching(tuple(numbers), "by number")
    if model.labels is None and len(names) == model.count:
        return Matching(tuple(range(model.count)), "by the sorted order of their names")
    raise BadInput(_refusal(names, model, where))


def _are_folders(source: ImageSource) -> bool:
    """Are the classes the folders that the pictures lie in, rather than labels from a file?"""
    assert source.labels is not None
    assert source.classes is not None
    names = source.names
    if names is None:
        return False
    return all(name.split("/", 1)[0] == source.classes[label] for name, label in zip(names, source.labels, strict=True))


def _by_synset(names: Sequence[str], model: ModelClasses, where: str) -> Matching:
    assert model.synsets is not None
    if (
        model.labels is not None
        and model.labels != model.synsets
        and all(WORDNET_ID.fullmatch(label) for label in model.labels)
    ):
        raise BadInput(
            "--synsets gives the classes another order than the model's own labels, which are WordNet ids too; leave "
            "it out"
        )
    places = {synset: place for place, synset in enumerate(model.synsets)}
    unknown = [name for name in names if name not in places]
    if unknown:
        raise BadInput(
            f"{where}: expected classes among the WordNet ids of --synsets ({_some(model.synsets)}), got "
            f"{_some(unknown)}"
        )
    return Matching(tuple(places[name] for name in names), "by --synsets")


def _by_name(names: Sequence[str], labels: Sequence[str], where: str) -> Matching | None:
    """Match by the labels as they are, or else ignoring case and punctuation; None if a name is not among them."""
    for fold, how in ((str, "by name"), (_without_case_and_punctuation, "by name, letter case and punctuation aside")):
        places: dict[str, list[int]] = {}
        for place, label in enumerate(labels):
            places.setdefault(fold(label), []).append(place)
        found = [places.get(fold(name), []) for name in names]
        if not all(found):
            continue
        for name, mine in zip(names, found, strict=True):
            if len(mine) > 1:
                several = " and ".join(f"{place} ({labels[place]})" for place in mine[:SHOWN])
                raise BadInput(
                    f"{where}: '{name}' may be class {several}; name the folders or the labels by number, or by "
                    "WordNet id"
                )
        indices = tuple(mine[0] for mine in found)
        index, times = Counter(indices).most_common(1)[0]
        if times > 1:
            same = [name for name, other in zip(names, indices, strict=True) if other == index]
            raise BadInput(f"{where}: {_some(same)} are all class {index} ({labels[index]}); make them one")
        return Matching(indices, how)
    return None


def _without_case_and_punctuation(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _check_numbers(values: Iterable[int], count: int, where: str) -> None:
    numbers = sorted(values)
    if len(set(numbers)) != len(numbers):
        raise BadInput(f"{where}: expected each class once, got one number in two spellings; make them one")
    if numbers[0] == 1 and numbers[-1] == count:
        raise BadInput(
            f"{where}: the classes are numbered 1 to {count}, and nothing says in which order: ImageNet's "
            "ILSVRC2012_validation_ground_truth.txt has the devkit's, which is not the model's; give WordNet ids "
            f"(LOC_val_solution.csv), class names, or numbers from 0 to {count - 1}"
        )
    if numbers[-1] >= count:
        raise BadInput(
            f"{where}: expected classes from 0 to {count - 1}, since the model has {count}, got {numbers[-1]}; "
            "number them so or, where they are names, export the model with --labels"
        )


def _check_same_as_text(names: Sequence[str], count: int, where: str) -> None:
    """Refuse numbered folders whose order by number differs from their order as text. Missing numbers are taken to be
    written like those that are there.

    Raises:
        BadInput: the two orders differ.
    """
    padded = any(name != "0" and name.startswith("0") for name in names)
    width = min(map(len, names)) if padded else 1
    numbers = {int(name): name for name in names}
    ranks = {
        name: rank
        for rank, name in enumerate(sorted(numbers.get(number, str(number).zfill(width)) for number in range(count)))
    }
    other = next((name for name in names if ranks[name] != int(name)), None)
    if other is not None:
        raise BadInput(
            f"{where}: the folder '{other}' may be class {int(other)}, by its number, or class {ranks[other]}, by its "
            "place among the folders' sorted names, as ImageFolder trains; export the model with --labels, the folder "
            "that it was trained on"
        )


def _refusal(names: Sequence[str], model: ModelClasses, where: str) -> str:
    if all(WORDNET_ID.fullmatch(name) for name in names):
        return (
            f"{where}: expected {IMAGENET_CLASSES} WordNet ids for a model of as many classes, got {len(names)} "
            f"({_some(names)}) for one of {model.count}; give resnet-deploy eval --synsets with the model's classes in "
            "order (LOC_synset_mapping.txt or imagenet_class_index.json)"
        )
    if model.labels is None:
        return (
            f"{where}: expected as many classes as the model's {model.count}, got {len(names)} ({_some(names)}), and "
            "it has no labels to know them by; export it with --labels"
        )
    known = {_without_case_and_punctuation(label) for label in model.labels}
    unknown = [name for name in names if _without_case_and_punctuation(name) not in known]
    return (
        f"{where}: expected classes among the model's {len(model.labels)} labels ({_some(model.labels)}), got "
        f"{len(unknown)} others ({_some(unknown)}); rename them, number them from 0, or export the model with the "
        "right --labels"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
