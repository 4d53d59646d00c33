"""python -m detkd.status: how far the set in a folder is."""

from __future__ import annotations

from omegaconf import DictConfig

from detkd.data.progress import ProgressReader, to_json
from detkd.runtime.run import entry_point


@entry_point("status")
def main(cfg: DictConfig) -> None:
    """Print what is done, what is left, images a second, the time to go and the share of accepted images."""
    progress = ProgressReader(cfg.out).read()
    print(to_json(progress) if cfg.json else f"{cfg.out}: {progress.line()}")


if __name__ == "__main__":
    main()
