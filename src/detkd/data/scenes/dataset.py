"""Scenes as a Dataset, and as a COCO folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TypedDict

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detkd.boxes import xyxy_to_xywh
from detkd.data.scenes.world import WORLDS, check_arguments, draw_scene
from detkd.errors import InputError
from detkd.structures import Target

VARIANTS: tuple[str, ...] = tuple(WORLDS)
CLASSES: dict[str, tuple[str, ...]] = {name: tuple(kind.name for kind in world.kinds) for name, world in WORLDS.items()}


class Sample(TypedDict):
    """image: (3, H, W) uint8 RGB. target: boxes in its pixels. image_id: the scene's index."""

    image: Tensor
    target: Target
    image_id: int


class ScenesDataset(Dataset[Sample]):
    """Scenes 0 ... length - 1 of a world, drawn when asked for.

    Args:
        length: number of scenes, >= 1.
        seed: scenes of different seeds have nothing in common.
        variant: one of VARIANTS.
        image_size: (height, width) in pixels.
        cache: keep drawn scenes in memory. Do not write into a cached image.

    Raises:
        InputError: as :func:`draw_scene`, or a length below one. IndexError for an index outside the set.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        variant: str = "main",
        image_size: tuple[int, int] = (96, 96),
        cache: bool = False,
    ) -> None:
        _, self.image_size = check_arguments(seed, variant, image_size)
        if length < 1:
            raise InputError(f"scenes: expected length >= 1, got {length}")
        self.length, self.seed, self.variant = length, seed, variant
        self._cache: dict[int, Sample] | None = {} if cache else None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return CLASSES[self.variant]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        index %= self.length
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        scene = draw_scene(self.seed, index, variant=self.variant, image_size=self.image_size)
        sample = Sample(image=scene.image, target=scene.target, image_id=index)
        if self._cache is not None:
            self._cache[index] = sample
        return sample


def write_coco(
    folder: str | Path, length: int, seed: int = 0, variant: str = "main", image_size: tuple[int, int] = (96, 96)
) -> Path:
    """Write the scenes of :class:`ScenesDataset` as ``folder/images/*.png`` and ``folder/instances.json``; return ``folder``.

    COCO json: image ids are the scenes' indices, category ids ``label + 1``, bbox xywh in pixels, area that of the box, iscrowd 0.
    The folder appears whole or not at all.

    Raises:
        InputError: ``folder`` is a file or holds something; or as :class:`ScenesDataset`.
    """
    folder = Path(folder).resolve()
    scenes = ScenesDataset(length, seed, variant, image_size)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder to write scenes to, found one that holds something")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder.parent}: expected a folder to write scenes in, found a file on the way") from error
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as private:
        part = Path(private) / "scenes"  # one below, because the temporary folder itself is closed to other users
        part.mkdir()
        _write(part, scenes)
        if folder.exists():
            folder.rmdir()  # it is empty; not every system renames onto an empty folder
        part.rename(folder)
    return folder


def _write(folder: Path, scenes: ScenesDataset) -> None:
    (folder / "images").mkdir()
    height, width = scenes.image_size
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(len(scenes)):
        sample = scenes[index]
        name = f"{index:06d}.png"
        Image.fromarray(sample["image"].permute(1, 2, 0).contiguous().numpy()).save(folder / "images" / name)
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        boxes_xywh = xyxy_to_xywh(sample["target"]["boxes"]).tolist()
        for bbox, label in zip(boxes_xywh, sample["target"]["labels"].tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(scenes.classes)]
    info = {"description": f"detkd scenes, variant {scenes.variant}, seed {scenes.seed}, {height} x {width} pixels"}
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
