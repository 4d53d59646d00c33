"""python -m detkd.scenes: write scenes of the built-in world as a COCO folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from detkd.data.scenes import write_coco
from detkd.errors import InputError
from detkd.runtime.run import entry_point


@entry_point("scenes")
def main(cfg: DictConfig) -> Path:
    """Draw the scenes and write images/ and instances.json; a folder that holds something is left alone."""
    size = list(cfg.image_size) if isinstance(cfg.image_size, ListConfig) else [cfg.image_size] * 2
    for key, values in {"images": [cfg.images], "seed": [cfg.seed], "image_size": size}.items():
        if not all(type(value) is int for value in values):
            raise InputError(f"{key}: expected whole numbers, got {cfg[key]!r}")
    folder = write_coco(cfg.out, cfg.images, cfg.seed, cfg.variant, tuple(size))
    print(f"{folder}: {cfg.images} scenes of seed {cfg.seed}")
    return folder


if __name__ == "__main__":
    main()
