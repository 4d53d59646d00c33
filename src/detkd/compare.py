"""python -m detkd.compare: compare two or more detectors on one data set, from their runs of evaluate."""

from __future__ import annotations

from omegaconf import DictConfig

from detkd.runtime.compare import compare, markdown, summarise, write_markdown, write_tables
from detkd.runtime.compare_output import check_settings, write_pictures
from detkd.runtime.compare_runs import match_runs, read_runs
from detkd.runtime.run import claim, entry_point, output_dir, write_results
from detkd.runtime.stale import clear, listed


@entry_point("compare")
def main(cfg: DictConfig) -> dict[str, object]:
    """Read runs, the first of them the baseline; write tables with intervals, figures and side-by-side pictures."""
    folder = output_dir()
    check_settings(cfg)
    runs = read_runs(cfg.runs, cfg.data.root)
    matched = match_runs(runs)
    compared = compare(
        [run.name for run in runs],
        matched.scenes,
        matched.classes,
        matched.supercategories,
        resamples=cfg.resamples,
        seed=cfg.seed,
        score_threshold=cfg.score_threshold,
    )
    claim(cfg, folder)
    clear(folder)
    records = matched.records
    write_tables(folder, compared, [r.image_id for r in records], [r.path.name for r in records])
    table = markdown(compared, len(records), cfg.resamples, cfg.seed, matched.notes)
    write_markdown(folder, table)
    drawn = write_pictures(folder, compared, matched.scenes[0], records, matched.classes, cfg.pictures, cfg.score_threshold)
    results: dict[str, object] = {
        "images": len(records),
        "classes": matched.classes,
        "classes_left_out": matched.left_out,
        "notes": matched.notes,
        "resamples": cfg.resamples,
        "seed": cfg.seed,
        "runs": [found | run.hashes for found, run in zip(summarise(compared), runs)],
    } | listed(folder, drawn)
    write_results(folder, results)
    print(table)
    return results


if __name__ == "__main__":
    main()
