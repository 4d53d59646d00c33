"""One name for each COCO class: darknet's, Pascal VOC's and BDD100k's spellings mean the same things."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detkd.errors import InputError

# As in darknet's coco.names, in VOC and in BDD100k, against the official COCO categories.
SYNONYMS = {
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "motor": "motorcycle",
    "bike": "bicycle",
    "pedestrian": "person",
}


def canonical(name: str) -> str:
    """The official COCO spelling of a class name; other names come back as they are, without outer spaces."""
    name = name.strip()
    return SYNONYMS.get(name, name)


def label_lookup(classes: Sequence[str]) -> Callable[[str], int | None]:
    """A function that finds the label of a name among ``classes``; None where it is not there.

    The name itself goes before another spelling of it (:func:`canonical`); of several that fit, the first is taken.
    """
    exact: dict[str, int] = {}
    same: dict[str, int] = {}
    for label, name in enumerate(classes):
        exact.setdefault(name, label)
        same.setdefault(canonical(name), label)
    return lambda name: exact.get(name, same.get(canonical(name)))


def label_map(classes: Sequence[str], known: Sequence[str], who: str) -> list[int]:
    """For each of ``classes`` its label in ``known``, by name. Raises InputError, naming ``who``, where one is not there."""
    label_of = label_lookup(known)
    found = [label_of(name) for name in classes]
    if unknown := [name for name, label in zip(classes, found) if label is None]:
        raise InputError(
            f"{who}: expected a detector that knows the teacher's classes, found one without {unknown[:10]}; "
            f"its {len(known)} classes are {list(known[:10])}{'...' if len(known) > 10 else ''}"
        )
    return [label for label in found if label is not None]
