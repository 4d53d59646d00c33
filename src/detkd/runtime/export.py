"""The files of `python -m detkd.export`: written beside the folder, checked, and moved into it when all is well."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from detkd.data.formats import open_dataset
from detkd.data.scenes import ScenesDataset
from detkd.detectors.checkpoint import fingerprint
from detkd.detectors.darknet.detector import DarknetDetector
from detkd.detectors.deploy import Graph, export_graph, make_graph, portable
from detkd.detectors.deploy.darknet_files import CFG, NAMES, WEIGHTS, as_darknet, check_darknet, write_darknet
from detkd.detectors.deploy.graph import check_exportable
from detkd.detectors.deploy.onnx_file import OnnxFile, check_packages, finish_onnx, write_onnx
from detkd.detectors.protocol import Detector
from detkd.disk import sha256_of
from detkd.errors import InputError
from detkd.evaluation.parity import ATOL, BOX, RTOL, SCORE, UNMATCHED, UNMATCHED_ROWS, Parity
from detkd.runtime.model_card import model_card
from detkd.runtime.provenance import Provenance, last_part
from detkd.runtime.run import CONFIG_FILE, RESULTS_FILE, check_claim, record, write_json, write_results, write_text
from detkd.structures import DetectorSpec

FILES = {"onnx": ("model.onnx",), "exported_program": ("model.pt2",), "darknet": (CFG, WEIGHTS, NAMES)}
OTHERS = ("README.md", "parity.json", RESULTS_FILE, CONFIG_FILE)
_SCENES_SEED = 7
Run = Callable[[Tensor], Mapping[str, Tensor]]


def check_formats(formats: Any, student: Detector) -> list[str]:
    """The formats, each once; of None all that the student has: onnx, exported_program, and darknet of a student of darknet.

    Raises InputError for one that is unknown, lacks a package or does not go with the student.
    """
    if formats is None:
        formats = list(FILES) if isinstance(student, DarknetDetector) else ["onnx", "exported_program"]
    given = [str(f) for f in formats] if isinstance(formats, ListConfig | list | tuple) else [str(formats)]
    if not given or (unknown := [f for f in given if f not in FILES]):
        found = unknown if given else "none"
        raise InputError(f"formats: expected some of {', '.join(FILES)}, like formats=[onnx], found {found}")
    check_exportable(student)
    if "onnx" in given:
        check_packages()
    if "darknet" in given:
        as_darknet(student)
    return list(dict.fromkeys(given))


def check_weights(node: DictConfig | None) -> None:
    """Raise InputError for a student that would start from random weights."""
    # a path that is still to be given is no key of the node's, and the detector's builder asks for it
    if node and "path" not in set(node.keys()) and node.get("weights") is None:
        raise InputError(
            "student: expected one with weights, like student=checkpoint student.path=FILE or student.weights=FILE, "
            "found an architecture alone"
        )


def check_folder(cfg: DictConfig, folder: Path) -> None:
    """Raise InputError where the folder cannot be replaced whole, or holds anything but an export of this very configuration."""
    check_replaceable(folder)
    known = {name for names in FILES.values() for name in names} | set(OTHERS)
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in there if name not in known]:
        raise InputError(f"{folder}: expected an empty folder or an export, found {', '.join(others[:3])}")
    if there and RESULTS_FILE not in there:
        raise InputError(
            f"{folder}: expected an empty folder or a whole export, found {', '.join(there[:3])} without {RESULTS_FILE}"
        )
    check_claim(cfg, folder)


def read_images(cfg: DictConfig, spec: DetectorSpec) -> Tensor:
    """(n, 3, H, W) images in [0, 1] at the student's size: of ``data.root``, evenly spaced and none twice, else built-in scenes."""
    node = cfg.data
    for key in ("holdout", "num_workers"):
        if node.get(key):
            raise InputError(f"data.{key}: expected 0, since a few images are looked at once, found {node[key]}")
    length = node.length
    if not isinstance(length, int) or length < 1:
        raise InputError(f"data.length: expected at least 1 image, found {length}")
    if node.get("root") is None:
        scenes = ScenesDataset(length, _SCENES_SEED, image_size=spec.image_size)
        return torch.stack([scenes[i]["image"] for i in range(length)]).float() / 255
    dataset = open_dataset(
        node.root,
        node.format,
        role="score",
        annotations=node.get("annotations"),
        split=node.get("split"),
        classes=spec.classes,
        image_size=spec.image_size,
        resize=spec.resize,
        invalid_boxes="drop",
        proxy=True,
    )
    taken = min(length, len(dataset))
    return torch.stack([dataset[i * len(dataset) // taken]["image"] for i in range(taken)]).float() / 255


def export_student(
    cfg: DictConfig,
    student: Detector,
    formats: Sequence[str],
    images: Tensor,
    provenance: Provenance,
    folder: Path,
) -> dict[str, Any]:
    """Write what ``formats`` ask for into ``folder``, check it on images (n, 3, H, W), and return what results.json says.

    The folder is replaced whole, when every file has passed its check. Raises InputError naming what a file says otherwise than the student.
    """
    student.to("cpu")
    parities: dict[str, Parity] = {}
    with replacing_folder(folder) as temporary:
        if "onnx" in formats or "exported_program" in formats:
            graph, raw = make_graph(student, cfg.nms), make_graph(student, cfg.nms, raw=True)
            if "onnx" in formats:
                parities["model.onnx"] = _write_onnx(graph, raw, images, temporary / "model.onnx")
            if "exported_program" in formats:
                parities["model.pt2"] = _write_program(graph, raw, images, temporary / "model.pt2")
        if "darknet" in formats:
            write_darknet(as_darknet(student), temporary)
            check_darknet(temporary, as_darknet(student.eval()), images)
        hashes = {name: sha256_of(temporary / name) for f in formats for name in FILES[f]}
        write_json(temporary / "parity.json", _report(parities, len(images), cfg.data.get("root")))
        card = model_card(student, make_graph(student, cfg.nms), formats, hashes, parities, len(images), provenance)
        write_text(temporary / "README.md", card)
        results = {"student_sha256": fingerprint(student), "files": hashes, "nms": bool(cfg.nms), "images": len(images)}
        results |= {"parity": {name: parity.passed() for name, parity in parities.items()}}
        record(cfg, temporary)
        write_results(temporary, results)
    return results


def check_replaceable(folder: Path) -> None:
    """Raise InputError for the current folder or one around it, a mount point, and where nothing can be written beside the folder.

    Nothing is moved: no system lets a folder take the place of one that is not empty, and that of a mount point is refused for another reason.
    """
    advice = f"{folder}: expected a folder that can be replaced whole, like {folder / 'export'}"
    here = Path.cwd().resolve()
    if folder == here or folder in here.parents:
        raise InputError(f"{advice}, found the current folder{'' if folder == here else ' inside it'}")
    if folder.is_dir():
        try:
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as taken:
                (Path(taken) / "full").mkdir()
                os.rename(folder, taken)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                found = "a mount point" if error.errno == errno.EBUSY else f"that it cannot: {error.strerror}"
                raise InputError(f"{advice}, found {found}") from None


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside ``folder`` to fill; it takes the place of ``folder`` when the block ends well, else it is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        filled, before = work / "new", work / "old"
        filled.mkdir()
        yield filled
        if folder.exists():
            os.replace(folder, before)
        try:
            os.replace(filled, folder)
        except OSError:
            if before.exists():
                os.replace(before, folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def compare(graph: Graph, run: Run, images: Tensor) -> Parity:
    """Compare a file with the student it was made of: outputs by site, rows of proposals by place, and detections with ``decode``'s own.

    The first image goes alone, the others as one batch where the graph takes any.
    """
    parity, detector = Parity(), graph.module.detector
    place = next((name for name in ("raw_proposals", "boxes") if name in graph.rows), None)
    sizes = [1, len(images) - 1] if graph.any_batch and len(images) > 1 else [1] * len(images)
    for batch in torch.split(images, sizes):
        expected, found = graph(batch), run(batch)
        with torch.no_grad():
            decoded = detector.decode(detector(batch))
        parity.add({name: expected[name] for name in graph.sites}, found, decoded, graph.detections(found))
        if place is not None:
            parity.add_rows({name: expected[name] for name in graph.rows}, found, place)
    return parity


def _write_onnx(graph: Graph, raw: Graph, images: Tensor, path: Path) -> Parity:
    """Write the file with raw outputs, compare it, take them off, and compare what is left once more."""
    write_onnx(export_graph(raw), path, raw.outputs)
    compared = _passed(compare(raw, OnnxFile(path, torch.get_num_threads()), images), path)
    spec = graph.module.detector.spec
    finish_onnx(path, raw.raw, {"classes": json.dumps(spec.classes), "resize": spec.resize})
    _passed(compare(graph, OnnxFile(path, torch.get_num_threads()), _busiest(compared, images)), path, finished=True)
    return compared


def _write_program(graph: Graph, raw: Graph, images: Tensor, path: Path) -> Parity:
    """The same for an ExportedProgram, from which outputs are not taken off: it is exported once more without them."""
    torch.export.save(portable(export_graph(raw)), path)
    compared = _passed(compare(raw, _opened(path, raw), images), path)
    torch.export.save(portable(export_graph(graph)), path)
    _passed(compare(graph, _opened(path, graph), _busiest(compared, images)), path, finished=True)
    return compared


def _opened(path: Path, graph: Graph) -> Run:
    again = torch.export.load(path).module()

    def run(batch: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(graph.outputs, again(batch), strict=True))

    return run


def _busiest(parity: Parity, images: Tensor) -> Tensor:
    """The image (1, 3, H, W) with the most detections."""
    counts = parity.detections.by_image
    best = counts.index(max(counts))
    return images[best : best + 1]


def _passed(parity: Parity, path: Path, finished: bool = False) -> Parity:
    """Say what was compared, and raise InputError for what is beyond the tolerances. finished: of the file as it is kept."""
    print(f"{path.name}{', as kept, one image' if finished else ''}: {parity.line()}", flush=True)
    if failures := parity.failures():
        raise InputError(
            f"{path.name}: expected the student's own outputs, found others; nothing is kept: {'; '.join(failures)}"
        )
    if not finished and not parity.detections.matched:
        unchecked = f", so that those of {path.name} are not checked" if parity.passed() is None else ""
        print(
            f"note: the student finds nothing in these images{unchecked}; give some that show its objects: data.root=DIR",
            flush=True,
        )
    return parity


def _report(parities: Mapping[str, Parity], count: int, root: Any) -> dict[str, Any]:
    return {
        "images": count,
        "of": "built-in scenes" if root is None else last_part(str(root)),
        "tolerances": {
            "outputs_relative": RTOL,
            "outputs_absolute": ATOL,
            "boxes_px": BOX,
            "scores": SCORE,
            "unmatched": UNMATCHED,
            "unmatched_proposals": UNMATCHED_ROWS,
        },
        "files": {name: parity.to_dict() for name, parity in parities.items()},
    }
