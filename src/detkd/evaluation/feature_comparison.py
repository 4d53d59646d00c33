"""Compare the feature maps of students with those of their teacher, image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from detkd.detectors.modes import looking
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.evaluation.feature_distance import RegionSums, channel_distance, comparable_level, region_sums
from detkd.evaluation.gradient_norm import gradient_norms
from detkd.losses.connectors import neck_strides
from detkd.losses.regions import object_masks
from detkd.structures import Target, pseudo_labels


@dataclass
class Comparison:
    """What is known of one student.

    level: name of the map that distances and heat maps are of. distance: of each channel to the teacher's, over all images.
    gradients: norms by neck level, fine first, over all images, each of one channel. heat: norms (h, w) at ``level``, of the first images.
    """

    level: str
    distance: RegionSums
    gradients: dict[str, RegionSums]
    heat: list[Tensor] = field(default_factory=list)


@dataclass
class Compared:
    """All students on the same images; every tensor is on the CPU.

    students: a comparison by name. images: how many there were. shown: the first images (3, H, W) in [0, 1] and their objects.
    """

    students: dict[str, Comparison]
    images: int
    shown: list[tuple[Tensor, Target]]


def check_students(students: Mapping[str, Detector], teacher: Detector) -> None:
    """Raises InputError without students, and where image sizes or resize policies of students, or classes of any, differ."""
    if not students:
        raise InputError("students: expected at least one, found none")
    (first, model), *others = students.items()
    for name, other in others:
        if (other.spec.image_size, other.spec.resize) != (model.spec.image_size, model.spec.resize):
            raise InputError(
                f"students: expected one image size and resize policy, found {model.spec.image_size} {model.spec.resize} of {first} and "
                f"{other.spec.image_size} {other.spec.resize} of {name}"
            )
    for name, student in students.items():
        if student.spec.classes != teacher.spec.classes:
            raise InputError(
                f"students: expected the teacher's {len(teacher.spec.classes)} classes {teacher.spec.classes}, "
                f"found {len(student.spec.classes)} of {name} {student.spec.classes}"
            )


def compare_features(
    students: Mapping[str, Detector],
    teacher: Detector,
    samples: Iterable[tuple[Tensor, Target | None]],
    level: str | None = None,
    score_threshold: float = 0.3,
    box_side: float = 56.0,
    pictures: int = 0,
    seed: int = 0,
) -> Compared:
    """Distances to the teacher at one neck level, and gradient norms of the students' own losses at all of them.

    Args:
        students: by name, with the teacher's classes and one image size.
        samples: images (3, H, W) in [0, 1] of that size, on the detectors' device, with their objects; None for the teacher's detections that
            score more than ``score_threshold``.
        level: a neck level of the students; None the first that the teacher has too.
        box_side: see :func:`~detkd.losses.regions.object_masks`: a box is an object on one level alone.
        pictures: how many images are kept, with their heat maps.
        seed: of what the losses of two-stage students sample.

    Raises InputError for no images, students that differ in image size or classes, or maps that are not of the teacher's shape.
    """
    check_students(students, teacher)
    found: dict[str, Comparison] = {}
    shown: list[tuple[Tensor, Target]] = []
    number = -1
    for number, (image, target) in enumerate(samples):
        images = image[None]  # (1, 3, H, W)
        with looking(teacher):
            theirs = teacher(images)
            targets = [target] if target is not None else pseudo_labels(teacher.decode(theirs), score_threshold)
        if number < pictures:
            shown.append((image.cpu(), {"boxes": targets[0]["boxes"].cpu(), "labels": targets[0]["labels"].cpu()}))
        for name, student in students.items():
            mine, norms = gradient_norms(student, images, targets, seed + number)
            pair = comparable_level(mine, theirs, level, name)
            strides = neck_strides(mine)
            sizes = [(n.shape[-2], n.shape[-1]) for n in norms.values()]
            drawn = object_masks(targets, sizes, [strides[n] for n in norms], box_side)
            masks = {n: mask.to(images.device) for n, mask in zip(norms, drawn)}
            distance = channel_distance(mine.features[pair.student], theirs.features[pair.teacher], masks[pair.student])
            gradients = {n: region_sums(norm[:, None], masks[n]) for n, norm in norms.items()}
            if name in found:
                known = found[name]
                known.distance = known.distance.plus(distance)
                known.gradients = {n: known.gradients[n].plus(sums) for n, sums in gradients.items()}
            else:
                known = found[name] = Comparison(pair.student, distance, gradients)
            if number < pictures:
                known.heat.append(norms[pair.student][0].cpu())
    if number < 0:
        raise InputError("data: expected at least one image, found none")
    for known in found.values():  # once: sums stay on the device while images go by
        known.distance = known.distance.cpu()
        known.gradients = {n: sums.cpu() for n, sums in known.gradients.items()}
    return Compared(found, number + 1, shown)
