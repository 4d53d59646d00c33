"""YOLO's text format: a label file beside each image, and the index files that its readers start from.

    data.yaml         for ultralytics: where the list of images is, and the class names
    train.txt         ./shards/000012/000096.png, one image a line
    classes.names     for darknet: class i on line i

A line of a label file is "class cx cy w h", the box relative to the image. Both readers look for the labels of an image beside it, under its
name with .txt, unless a folder named images (for ultralytics any; for darknet images/train2017 and the like) is part of its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from detkd.boxes import xyxy_to_cxcywh
from detkd.data.escape import one_line, yaml_string
from detkd.disk import replace_file

_HEADER = """\
# Written for ultralytics. There is no `path` key: these paths are relative to this file.
# `val` must be there; put your own labelled images in its place, or scores are those of the training images.
"""


def yolo_lines(boxes_xyxy: Tensor, labels: Tensor, image_size: tuple[int, int]) -> str:
    """The content of an image's label file.

    boxes_xyxy: (n, 4) pixels, inside the image. labels: (n,) 0-based. image_size: (height, width).

    Returns:
        a line a box, "class cx cy w h", in [0, 1] with 6 digits, ended by a line feed; "" without boxes.

    Raises ValueError when the arguments do not fit each other or a box leaves its image, which readers refuse.
    """
    height, width = image_size
    if boxes_xyxy.shape != (len(labels), 4):
        raise ValueError(f"expected boxes (n, 4) for {len(labels)} labels, got {tuple(boxes_xyxy.shape)}")
    sides = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes = boxes_xyxy.detach().cpu().double()
    if not bool(((boxes >= 0) & (boxes <= sides)).all()):  # false for nan
        raise ValueError(f"expected boxes inside {width} x {height} pixels, got {boxes_xyxy}")
    relative = xyxy_to_cxcywh(boxes / sides).tolist()
    lines = [f"{label} " + " ".join(f"{v:.6f}" for v in box) for label, box in zip(labels.tolist(), relative)]
    return "".join(line + "\n" for line in lines)


def write_yolo_index(root: Path, files: Sequence[str], classes: Sequence[str]) -> None:
    """Write train.txt, classes.names and data.yaml into ``root``, in this order and each whole.

    files: of the images, relative to ``root``, with "/". classes: names in label order; line breaks in them become spaces in classes.names.

    Raises ValueError for a file that is not below ``root`` or whose name has a line break.
    """
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or one_line(name) != name or not name:
            raise ValueError(f"expected paths below the folder of the set, got {name!r}")
    replace_file(root / "train.txt", "".join(f"./{PurePosixPath(name)}\n" for name in files).encode())
    replace_file(root / "classes.names", "".join(one_line(name) + "\n" for name in classes).encode())
    names = "".join(f"  {label}: {yaml_string(name)}\n" for label, name in enumerate(classes)) if classes else ""
    content = f"{_HEADER}train: train.txt\nval: train.txt\nnames:{' {}' if not names else ''}\n{names}"
    replace_file(root / "data.yaml", content.encode())
