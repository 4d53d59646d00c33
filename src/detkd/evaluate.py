"""python -m detkd.evaluate: score a detector on a data set, or write its detections for images without labels."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from detkd.data.identity import truths_sha256
from detkd.detectors.checkpoint import fingerprint
from detkd.errors import InputError
from detkd.evaluation.coco import coco_detections, detect, score
from detkd.runtime import build
from detkd.runtime.data import KEYS, open_labelled
from detkd.runtime.robustness import run_benchmark
from detkd.runtime.run import claim, device_of, entry_point, finished, output_dir, write_json, write_results, write_text


@entry_point("evaluate")
def main(cfg: DictConfig) -> dict[str, object]:
    """Run the detector over the images; write results.json and a table, or detections.json where there are no labels.

    With ``corruptions``, score it under each of them too.
    """
    folder = output_dir()
    if cfg.data.get("root") is None:
        raise InputError("data.root: expected a folder of images, like data.root=DIR, found none")
    if cfg.data.holdout:
        raise InputError(f"data.holdout: expected 0, since all images are scored, found {cfg.data.holdout}")
    detector = build.required(build.build_detector(cfg.teacher, "teacher"), "teacher")
    about: dict[str, object] = {"detector_sha256": fingerprint(detector)}
    if (done := finished(cfg, folder, about)) is not None:
        return done
    dataset = open_labelled(cfg.data, detector.spec)
    if cfg.corruptions is not None:
        return run_benchmark(cfg, detector, dataset)
    claim(cfg, folder)
    detections = detect(detector, dataset, cfg.batch_size, device_of(cfg.device), cfg.data.num_workers)
    image_ids = [dataset.image_id(i) for i in range(len(dataset))]
    category_ids = dataset.category_ids or {label: label + 1 for label in range(len(detector.spec.classes))}
    write_json(folder / "detections.json", coco_detections(detections, image_ids, category_ids))
    results: dict[str, object] = dict.fromkeys(KEYS) | {"images": len(dataset)}
    if dataset.labelled:
        truths = [dataset.ground_truth(i) for i in range(len(dataset))]
        scores = score(detections, truths, detector.spec.classes)
        results = scores.to_dict() | {"scored_sha256": truths_sha256(truths, detector.spec.classes)}
        write_text(folder / "results.md", scores.markdown())
        Console().print(scores.table(str(cfg.data.root)))
    else:
        print(f"no labels in {cfg.data.root}: wrote {folder / 'detections.json'}")
    results |= about
    write_results(folder, results)
    return results


if __name__ == "__main__":
    main()
