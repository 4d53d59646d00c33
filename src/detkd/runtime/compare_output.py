"""The pictures of `python -m detkd.compare`, in their places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from detkd.data.annotations import Record
from detkd.data.images import read_image
from detkd.errors import InputError
from detkd.evaluation.matching import Scene
from detkd.runtime.compare import Compared, changed
from detkd.runtime.compare_figures import calibration_figure, classes_figure, confidence_figure, curves_figure, sizes_figure
from detkd.runtime.compare_pictures import side_by_side
from detkd.runtime.plotting import file_name


def check_settings(cfg: DictConfig) -> None:
    """Raises InputError for numbers that cannot be, before anything is read."""
    for key, least in (("resamples", 1), ("pictures", 0), ("seed", 0)):
        if not isinstance(cfg[key], int) or isinstance(cfg[key], bool) or cfg[key] < least:
            raise InputError(f"{key}: expected a whole number of at least {least}, found {cfg[key]!r}")
    if not isinstance(cfg.score_threshold, (int, float)) or not 0 <= cfg.score_threshold < 1:
        raise InputError(f"score_threshold: expected a number in [0, 1), found {cfg.score_threshold!r}")


def write_pictures(
    folder: Path,
    compared: Sequence[Compared],
    scene: Scene,
    records: Sequence[Record],
    classes: Sequence[str],
    pictures: int,
    score_threshold: float,
) -> list[Path]:
    """Draw all figures into ``folder`` and the images that changed most into ``pictures/``, most changed first.

    Gives the paths of those that are numbered.
    """
    numbered = []
    for number, other in enumerate(compared[1:], 1):
        name = file_name(number, other.name)
        numbered += [folder / f"sizes_{name}", folder / f"classes_{name}"]
        sizes_figure(compared[0], other, numbered[-2])
        classes_figure(other, numbered[-1])
    curves_figure(compared, folder / "curves.png")
    confidence_figure(compared, folder / "confidence.png")
    calibration_figure(compared, score_threshold, folder / "calibration.png")
    for number, (index, change) in enumerate(changed(compared)[:pictures], 1):
        record = records[index]
        numbered.append(folder / "pictures" / file_name(number, record.path.stem))
        side_by_side(
            read_image(record.path, record.size),
            scene.true[index],
            [(of.name, of.judged[index]) for of in compared],
            classes,
            f"{record.path.name}: right - wrong - missed changes by {change:+d}",
            numbered[-1],
        )
    return numbered
