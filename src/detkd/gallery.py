"""python -m detkd.gallery: write the HTML gallery of a set, to look at its images worst first."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from detkd.errors import InputError
from detkd.runtime.gallery import read_scores, write_gallery
from detkd.runtime.run import entry_point
from detkd.runtime.static import announce


@entry_point("gallery")
def main(cfg: DictConfig) -> Path:
    """Write index.html and gallery.js, by default into gallery/ in the set's own folder."""
    if cfg.data.root is None:
        raise InputError("data.root: expected the folder of a complete set, like data.root=DIR, found none")
    root = Path(cfg.data.root)
    page = write_gallery(root, None if cfg.out is None else Path(cfg.out), read_scores(root))
    announce(page)
    return page


if __name__ == "__main__":
    main()
