"""A set as a page to look at: all images with boxes and scores, worst first, from files alone.

    gallery/index.html    the page; the same for every set
    gallery/gallery.js    what is known of the set, column by column

The page opens from a folder: data comes by a script tag, images by relative paths, and its content security policy lets it load nothing from elsewhere.
Its source is in gallery_page/.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detkd.data.duplicates import find_duplicates, read_duplicates
from detkd.data.escape import script_json
from detkd.data.manifest import read_manifest
from detkd.data.shards import read_trace
from detkd.data.store import Store, open_store
from detkd.disk import parse_json, replace_file
from detkd.errors import InputError
from detkd.runtime.run import RESULTS_FILE
from detkd.runtime.static import fill_page

_PAGE = Path(__file__).with_name("gallery_page")
_SCRIPTS = ("set.js", "query.js", "dom.js", "grid.js", "histogram.js", "detail.js", "main.js")
_GENERATOR = b'<meta name="generator" content="detkd gallery">'
_POINTS = 64  # of the course of a batch that are kept


def write_gallery(root: Path, out: Path | None = None, scores: Mapping[str, Any] | None = None) -> Path:
    """Write the gallery of a complete store and return the path of its page.

    Args:
        root: of the store. Near-duplicates are those in its duplicates.json; without one they are looked for, which reads every image.
        out: the folder to write to, by default gallery/ in ``root``. Links to the images are relative, so move both or neither.
        scores: may have ``teacher_ap50`` and ``verifier_ap50``, fractions or None; other keys are passed over.

    The same files for the same set and the same place of ``out`` relative to ``root``. Raises InputError when there is no complete store, when
    ``out`` is a file or has an index.html that is not a gallery, and when no relative path leads from it to ``root``.
    """
    store = open_store(root)
    out = root / "gallery" if out is None else out
    page = out / "index.html"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder to write to, found a file")
    if page.exists() and _GENERATOR not in page.read_bytes():
        raise InputError(f"{page}: expected none, or a gallery to replace, found another page")
    home = _relative(root, out)
    duplicate_of = read_duplicates(store)
    duplicate_of = find_duplicates(store) if duplicate_of is None else duplicate_of
    content = gallery_data(store, duplicate_of, home, {} if scores is None else scores)
    replace_file(out / "gallery.js", f"window.detkdGallery={script_json(content)};\n".encode("ascii"))
    replace_file(page, gallery_page())
    return page


def read_scores(root: Path) -> dict[str, Any]:
    """What results.json beside a store says of its scores; nothing where there is none that can be read, or another teacher's."""
    try:
        results = parse_json((root / RESULTS_FILE).read_bytes(), root / RESULTS_FILE)
        ours = results.get("teacher_sha256") == read_manifest(root)["teacher_sha256"]
    except (InputError, OSError):
        return {}
    return results if ours else {}


def gallery_page() -> bytes:
    """The page, with its style and scripts in it, and a policy that allows these alone, by their checksums."""
    parts = [(_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return fill_page(
        (_PAGE / "page.html").read_text(encoding="utf-8"),
        style=(_PAGE / "page.css").read_text(encoding="utf-8"),
        script='"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n",
        images="'self' file: data:",
        scripts="'self' file: ",
    )


def gallery_data(
    store: Store, duplicate_of: Sequence[int | None], home: str, scores: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the page is told of a set, json-able.

    Args:
        duplicate_of: of each image the index of the one that it repeats, or None. home: the address of the store as the page sees it.

    Returns:
        files: 10^6 x shard + position of each image. counts: objects of each. boxes: xyxy of all, in 1/10 pixel. labels: of all. records:
        [name, value of each image] by name. duplicates: [image, of which]. steps: images with a picture of intermediate steps.
        courses: {shard: {iterations, loss, objects}}. facts: what else there is to say.
    """
    instances = parse_json((store.root / "instances.json").read_bytes(), store.root / "instances.json")
    places = [_place(image["file_name"]) for image in instances["images"]]
    boxes: list[list[float]] = [[] for _ in places]
    labels: list[list[int]] = [[] for _ in places]
    for annotation in instances["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"] - 1] += [_short(v) for v in (x, y, x + width, y + height)]
        labels[annotation["image_id"] - 1].append(annotation["category_id"] - 1)
    names = sorted({name for record in store.records for name in record})
    strips = (p.relative_to(store.root).as_posix() for p in (store.root / "pictures" / "steps").glob("*/*.png"))
    steps = {(int(m[1]), int(m[2])) for strip in strips if (m := re.fullmatch(r"pictures/steps/(\d{6})/(\d{6})\.png", strip))}
    return {
        "root": home,
        "classes": list(store.classes),
        "size": list(store.image_size),
        "files": [shard * 1_000_000 + position for shard, position in places],
        "counts": [len(of) for of in labels],
        "boxes": [v for of in boxes for v in of],
        "labels": [v for of in labels for v in of],
        "records": [[name, [_finite(record.get(name)) for record in store.records]] for name in names],
        "duplicates": [[i, first] for i, first in enumerate(duplicate_of) if first is not None],
        "steps": [i for i, place in enumerate(places) if place in steps],
        "courses": {
            str(index): course for index in range(store.n_shards) if (course := _course(read_trace(store.root, index)))
        },
        "facts": _facts(store, {} if scores is None else scores),
    }


def _facts(store: Store, scores: Mapping[str, Any]) -> dict[str, Any]:
    recipe = store.recipe if isinstance(store.recipe, dict) else {}
    teacher = recipe.get("teacher")
    words = []
    if isinstance(teacher, dict) and isinstance(teacher.get("architecture"), str):
        words.append(f"teacher {teacher['architecture']}")
    if store.teacher_sha256:
        words.append(f"weights {store.teacher_sha256[:12]}")
    words.append(f"seed {store.seed}")
    known = [(name, scores.get(f"{name}_ap50")) for name in ("teacher", "verifier")]
    return {"words": words, "numbers": [[f"{name} AP50", float(value)] for name, value in known if value is not None]}


def _course(trace: Mapping[str, Any]) -> dict[str, list[float]] | None:
    """The lists of a trace, cut to evenly spaced points; None where it does not have as many iterations as values."""
    lists = {key: trace[key] for key in ("iterations", "loss", "objects") if isinstance(trace.get(key), list)}
    n = len(lists.get("iterations", ()))
    if n < 2 or any(len(v) != n or not all(isinstance(_finite(x), (int, float)) for x in v) for v in lists.values()):
        return None
    kept = sorted({round(k * (n - 1) / (min(n, _POINTS) - 1)) for k in range(min(n, _POINTS))})
    return {
        key: [values[k] if key == "iterations" else float(f"{values[k]:.4g}") for k in kept] for key, values in lists.items()
    }


def _place(file_name: str) -> tuple[int, int]:
    """Shard and position of an image of a store."""
    match = re.fullmatch(r"shards/(\d{6})/(\d{6})\.png", file_name)
    if match is None:
        raise InputError(f"instances.json: expected images like shards/000012/000096.png, found {file_name!r}")
    return int(match[1]), int(match[2])


def _relative(root: Path, out: Path) -> str:
    try:
        path = os.path.relpath(root.resolve(), out.resolve())
    except ValueError as error:  # on Windows, on another drive
        raise InputError(f"out: expected a folder on the drive of {root}, found {out}") from error
    return quote(os.fsencode(Path(path).as_posix()))  # names may be bytes of any encoding


def _short(value: float) -> float:
    rounded = round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded


def _finite(value: Any) -> Any:
    """The value, or None for a number that json does not have."""
    return None if isinstance(value, float) and value - value != 0 else value
