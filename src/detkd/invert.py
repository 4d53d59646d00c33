"""python -m detkd.invert: turn a frozen detector into a data set of images with boxes."""

from __future__ import annotations

import time

from omegaconf import DictConfig

from detkd.data.shards import read_trace
from detkd.runtime import build, store
from detkd.runtime.figures import objects_figure
from detkd.runtime.outputs import write_outputs
from detkd.runtime.publish import publish
from detkd.runtime.run import check_shared_folder, entry_point, keep_log, output_dir, record, write_results
from detkd.runtime.verifier import VerifierCallback


@entry_point("invert")
def main(cfg: DictConfig) -> dict[str, object]:
    """Optimise the images, write them as a data set into the run's folder, score them as stored."""
    check_shared_folder()
    folder = output_dir()
    teacher = build.required(build.build_detector(cfg.teacher, "teacher"), "teacher")
    verifier = build.build_detector(cfg.verifier, "verifier")
    module = build.build_inversion(cfg, teacher, verifier)
    watchers = [VerifierCallback(verifier, cfg.verify_every)] if verifier is not None and cfg.verify_every else []
    trainer = build.build_trainer(cfg, watchers, folder, independent=True, max_epochs=1)
    # only now, when every part is known to fit, is the folder touched
    writer = store.open_writer(cfg, folder, teacher, verifier, module.stages)
    with writer.alone():
        record(cfg, folder)
        keep_log(folder)
    with store.batches(cfg, writer, module, trainer) as module.batches:
        start, made = time.perf_counter(), cfg.n_images - store.images_in(cfg, writer.finished())
        trainer.fit(module)
    if not trainer.is_global_zero:
        return {}
    if missing := store.missing(writer, module):
        print(f"{folder}: stopped with {missing} of {module.n_batches} batches left; the same command goes on", flush=True)
        return {}
    seconds = time.perf_counter() - start - module.compile_seconds
    finished = writer.finish(module.n_batches, cfg.accept.rejected)
    results = store.score_images(finished, teacher, verifier, str(trainer.strategy.root_device))
    results |= store.speed(folder, len(finished), made, seconds, module.compile_seconds) | {
        "teacher_sha256": finished.teacher_sha256
    }
    with writer.alone():
        results |= write_outputs(folder, results)
        if module.sampling is not None:
            objects_figure(
                [read_trace(folder, index) for index in range(module.n_batches)], folder / "pictures" / "objects.png"
            )
        write_results(folder, results)
        publish(trainer.loggers, folder, results)
    print(f"{folder}: {store.summary(results)}")
    return results


if __name__ == "__main__":
    main()
