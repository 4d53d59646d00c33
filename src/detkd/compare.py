"""python -m detkd.compare: compare two or more detectors on one data set, from their runs of evaluate."""

from __future__ import annotations

from omegaconf import DictConfig

from detkd.runtime.compare import compare, markdown, summarise, write_markdown, write_tables
from detkd.runtime.compare_output import check_settings, write_pictures
from detkd.runtime.compare_runs import read_runs, scenes_of
from detkd.runtime.run import claim, entry_point, output_dir, write_results


@entry_point("compare")
def main(cfg: DictConfig) -> dict[str, object]:
    """Read runs, the first of them the baseline; write tables with intervals, figures and side-by-side pictures."""
    folder = output_dir()
    check_settings(cfg)
    runs = read_runs(cfg.runs, cfg.data.root)
    scenes, data = scenes_of(runs), runs[0].dataset
    compared = compare(
        [run.name for run in runs],
        scenes,
        runs[0].classes,
        data.supercategories,
        resamples=cfg.resamples,
        seed=cfg.seed,
        score_threshold=cfg.score_threshold,
    )
    claim(cfg, folder)
    records = [data.record(i) for i in range(len(data))]
    write_tables(folder, compared, [r.image_id for r in records], [r.path.name for r in records])
    table = markdown(compared, len(records), cfg.resamples, cfg.seed)
    write_markdown(folder, table)
    write_pictures(folder, compared, scenes[0], records, runs[0].classes, cfg.pictures, cfg.score_threshold)
    results: dict[str, object] = {
        "images": len(records),
        "resamples": cfg.resamples,
        "seed": cfg.seed,
        "runs": summarise(compared),
    }
    write_results(folder, results)
    print(table)
    return results


if __name__ == "__main__":
    main()
