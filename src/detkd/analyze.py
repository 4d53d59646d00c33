"""python -m detkd.analyze: say what kinds of errors a detector makes, from its run of evaluate."""

from __future__ import annotations

from omegaconf import DictConfig

from detkd.errors import InputError
from detkd.evaluation.errors import error_curves
from detkd.evaluation.matching import make_scene
from detkd.evaluation.tide import tide
from detkd.runtime.analysis import summary, write_analysis
from detkd.runtime.run import claim, entry_point, output_dir, write_results
from detkd.runtime.scored_run import read_scored_run
from detkd.runtime.stale import clear


@entry_point("analyze")
def main(cfg: DictConfig) -> dict[str, object]:
    """Read a run's detections; write COCO's seven curves and TIDE's table, as pictures, csv and json."""
    folder = output_dir()
    if cfg.run is None:
        raise InputError("run: expected the folder of a run of `python -m detkd.evaluate`, like run=runs/scores, found none")
    run = read_scored_run(cfg.run, root=cfg.data.root)
    scene = make_scene(run.detections, run.truths)
    curves = error_curves(scene, run.classes, run.dataset.supercategories)
    found = tide(scene)
    claim(cfg, folder)
    clear(folder)
    written = write_analysis(folder, run.name, curves, found, cfg.class_figures)
    results: dict[str, object] = {"images": len(run.truths)} | written | run.hashes
    write_results(folder, results)
    print(f"{summary(results)}\npictures: {folder / 'overall.png'}, {folder / 'tide.png'}")
    return results


if __name__ == "__main__":
    main()
