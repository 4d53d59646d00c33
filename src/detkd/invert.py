"""python -m detkd.invert: turn a frozen detector into a data set of images with boxes."""

from __future__ import annotations

import time

from hydra.utils import instantiate
from omegaconf import DictConfig

from detkd.detectors.checkpoint import fingerprint
from detkd.inversion.augment import Compose
from detkd.inversion.module import InversionModule
from detkd.inversion.writer import StoreCallback
from detkd.runtime import build, store
from detkd.runtime.run import entry_point, output_dir, record, write_results


@entry_point("invert")
def main(cfg: DictConfig) -> dict[str, object]:
    """Optimise the images, write them as a data set into the run's folder, score them as stored."""
    folder = output_dir()
    teacher = build.required(build.build_detector(cfg.teacher, "teacher"), "teacher")
    verifier = build.build_detector(cfg.verifier, "verifier")
    store.check_verifier(teacher, verifier)
    stages = build.build_stages(cfg)
    module = InversionModule(
        teacher,
        instantiate(cfg.image),
        build.build_loss(cfg.loss),
        instantiate(cfg.layout, _convert_="all"),
        Compose(build.build_list(cfg.augmentation)),
        stages,
        n_images=cfg.n_images,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        look_every=cfg.look_every,
        check_every=cfg.log_every,
        fold=cfg.fold,
        channels_last=cfg.channels_last,
    )
    trainer = build.build_trainer(cfg, [], folder, independent=True, max_epochs=1)
    # only now, when every part is known to fit, is the folder touched
    writer = store.open_writer(cfg, folder, teacher, stages)
    module.done = writer.finished()
    trainer.callbacks.append(StoreCallback(writer, module.n_batches))  # type: ignore[attr-defined]
    record(cfg, folder)
    start = time.perf_counter()
    made = cfg.n_images - store.images_in(module)
    trainer.fit(module)
    seconds = time.perf_counter() - start
    results: dict[str, object] = {}
    if trainer.is_global_zero:
        scores = store.score_images(writer, module.n_batches, teacher, verifier, str(trainer.strategy.root_device))
        results = scores | store.speed(folder, cfg.n_images, made, seconds) | {"teacher_sha256": fingerprint(teacher)}
        write_results(folder, results)
        print(f"{folder}: {store.summary(results)}")
    return results


if __name__ == "__main__":
    main()
