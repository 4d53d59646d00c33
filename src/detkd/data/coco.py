"""Images with COCO annotations, a store, or a plain folder of images, as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detkd.data.annotations import Annotations, Record, read_annotations
from detkd.data.checks import OnProblem, check_folder
from detkd.data.dataset import DetectionDataset
from detkd.data.images import SUFFIXES
from detkd.data.store import holds_store, open_store
from detkd.errors import InputError
from detkd.structures import Resize


class CocoDataset(DetectionDataset):
    """Read a folder of images, with or without COCO annotations, at a network's size.

    Args:
        root: a folder with a COCO json, a detkd store, or just images (in it, in images/, or one folder below either).
        annotations: the json, relative to ``root``. By default instances.json, else the only json in ``root`` or in
            annotations/, else none. Images lie below ``root``, images/, or a folder of the json's name (without "instances_") in either.
        classes: of the detector, in label order; categories map to them by name. None takes the json's own.
        image_size, resize, length, cache: see :class:`DetectionDataset`, which also lists the attributes.
        on_unknown, invalid_boxes, proxy: see :func:`detkd.data.annotations.read_annotations`.

    Raises InputError naming file and entry for annotations that do not hold together, more than one json to choose from, or no images;
    and when an image is read, for one that cannot be or whose size is not the one in the json.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path | None = None,
        *,
        classes: Sequence[str] | None = None,
        image_size: tuple[int, int],
        resize: Resize,
        length: int | None = None,
        cache: bool = False,
        on_unknown: OnProblem = "error",
        invalid_boxes: OnProblem = "error",
        proxy: bool = False,
    ) -> None:
        root = Path(root)
        check_folder(root)
        if annotations is None and holds_store(root):
            open_store(root)
        path = _find_json(root, annotations)
        if path is None:
            read = Annotations(tuple(classes or ()), {}, _plain_records(root))
        else:
            folders = _image_folders(root, path)
            read = read_annotations(path, folders, classes, on_unknown=on_unknown, invalid_boxes=invalid_boxes, proxy=proxy)
        super().__init__(path or root, read, image_size=image_size, resize=resize, length=length, cache=cache)
        self.root = root


def official_json(root: Path, split: str) -> Path:
    """The json of a split in COCO's own layout, relative to ``root``: annotations/instances_train2017.json, its images in train2017/.

    A split without public boxes has its image_info json. Raises InputError naming the file that is expected and those there are.
    """
    check_folder(root)
    names = [f"annotations/{kind}_{split}.json" for kind in ("instances", "image_info")]
    if found := next((name for name in names if (root / name).is_file()), None):
        return Path(found)
    there = _names(sorted((root / "annotations").glob("*.json")), root)
    raise InputError(f"{root / names[0]}: expected the annotations of the split {split!r}, found none; {root} has {there}")


def _find_json(root: Path, annotations: str | Path | None) -> Path | None:
    found = sorted(root.glob("*.json")) or sorted((root / "annotations").glob("*.json"))
    if annotations is not None:
        path = root / annotations
        if not path.is_file():
            raise InputError(f"{path}: expected a COCO json, found none; {root} has {_names(found, root)}")
        return path
    if (root / "instances.json") in found:
        return root / "instances.json"
    if len(found) > 1:
        raise InputError(
            f"{root}: expected instances.json or a single json, found {_names(found, root)}; name one as annotations"
        )
    return found[0] if found else None


def _names(paths: Sequence[Path], root: Path) -> str:
    return ", ".join(p.relative_to(root).as_posix() for p in paths) or "no json"


def _image_folders(root: Path, json_path: Path) -> list[Path]:
    name = json_path.stem.removeprefix("instances_").removeprefix("image_info_")
    folders = [root / "images" / name, root / name, root / "images", root]
    return [folder for folder in folders if folder.is_dir()]


def _plain_records(root: Path) -> list[Record]:
    base = root / "images" if (root / "images").is_dir() else root
    below = sorted(p for pattern in ("*", "*/*") for p in base.glob(pattern))
    paths = [p for p in below if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith(".")]
    return [Record(number, path) for number, path in enumerate(paths, start=1)]
