"""python -m detkd.evaluate: score a detector on a data set, or write its detections for images without labels."""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from detkd.detectors.checkpoint import fingerprint
from detkd.errors import InputError
from detkd.evaluation.coco import detect, score
from detkd.runtime import build
from detkd.runtime.data import KEYS, open_labelled
from detkd.runtime.robustness import run_benchmark
from detkd.runtime.run import claim, device_of, entry_point, finished, output_dir, write_results, write_text
from detkd.runtime.scored_run import data_facts, write_detections
from detkd.runtime.stale import clear


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
    clear(folder)
    about["detections_sha256"] = write_detections(folder, detections, dataset, detector.spec.classes)
    results: dict[str, object] = dict.fromkeys(KEYS) | {"images": len(dataset)}
    if dataset.labelled:
        truths = [dataset.ground_truth(i) for i in range(len(dataset))]
        scores = score(detections, truths, detector.spec.classes)
        results = scores.to_dict()
        write_text(folder / "results.md", scores.markdown())
        Console().print(scores.table(str(cfg.data.root)))
    else:
        print(f"no labels in {cfg.data.root}: wrote {folder / 'detections.json'}")
    results |= about | data_facts(dataset, detector.spec.classes)
    write_results(folder, results)
    return results


if __name__ == "__main__":
    main()
