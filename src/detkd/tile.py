"""python -m detkd.tile: lay several images of a data set out as one, with their boxes."""

from __future__ import annotations

import time

from omegaconf import DictConfig

from detkd.runtime import tile
from detkd.runtime.outputs import write_outputs
from detkd.runtime.run import entry_point, output_dir, record, write_results


@entry_point("tile")
def main(cfg: DictConfig) -> dict[str, object]:
    """Make the tilings that are missing, write them as a data set into the run's folder, and count their objects."""
    folder = output_dir()
    tilings = tile.build_tilings(cfg)
    # only now, when every part is known to fit, is the folder touched
    writer = tile.open_writer(cfg, folder, tilings)
    start = time.perf_counter()
    made = tile.write_shards(writer, tilings, cfg.n_images, cfg.shard_size)
    seconds = time.perf_counter() - start
    store = writer.finish(-(-cfg.n_images // cfg.shard_size))
    results: dict[str, object] = tile.describe(tilings, store)
    with writer.alone():
        record(cfg, folder)
        results |= write_outputs(folder, results)
        write_results(folder, results)
    print(f"{folder}: {tile.summary(results)}; {made} images in {seconds:.1f} s")
    return results


if __name__ == "__main__":
    main()
