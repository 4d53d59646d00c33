"""python -m detkd.report: put runs of any kind side by side in one HTML file, and their numbers in csv, json and Markdown."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from detkd.errors import InputError
from detkd.runtime.report.build import make_report
from detkd.runtime.report.write import write_report
from detkd.runtime.run import entry_point
from detkd.runtime.static import announce


@entry_point("report")
def main(cfg: DictConfig) -> Path:
    """Read the runs and write report.html, .csv, .json and .md; what cannot be read is named on stderr and in the report."""
    if cfg.runs is None:
        raise InputError("runs: expected folders of runs, like 'runs=[runs/a,runs/b]', found none")
    paths = [str(path) for path in cfg.runs] if isinstance(cfg.runs, ListConfig) else [str(cfg.runs)]
    report = make_report(paths, cfg.images, str(cfg.title))
    page = write_report(report, Path(cfg.out))
    for problem in [*report.problems, *report.lineage.warnings]:
        print(f"warning: {problem}", file=sys.stderr, flush=True)
    announce(page)
    return page


if __name__ == "__main__":
    main()
