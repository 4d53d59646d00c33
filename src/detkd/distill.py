"""python -m detkd.distill: train a student against a frozen teacher, or on labels alone."""

from __future__ import annotations

from typing import Any

import lightning
from omegaconf import DictConfig

from detkd.detectors.checkpoint import fingerprint, save_checkpoint
from detkd.runtime import build, data
from detkd.runtime.publish import publish, publish_student
from detkd.runtime.run import claim, entry_point, finished, output_dir, write_results


@entry_point("distill")
def main(cfg: DictConfig) -> dict[str, object]:
    """Train; write student.safetensors and results.json into the run's folder."""
    folder = output_dir()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    teacher = build.build_detector(cfg.teacher, "teacher")
    data.settle_root(cfg, teacher)
    about: dict[str, Any] = {"teacher_sha256": fingerprint(teacher) if teacher is not None else None}
    about |= {"data_sha256": data.training_set(cfg.data)}
    if (results := finished(cfg, folder, about)) is not None:
        return results
    classes = teacher.spec.classes if teacher is not None else data.classes_of(cfg)
    student = build.required(build.build_detector(cfg.student, "student", classes), "student")
    datamodule = data.build_datamodule(cfg, student, teacher)
    module = build.build_distillation(cfg, student, teacher)
    module.setup("fit")
    # only a detector's own loss is known to reach all of it
    trainer = build.build_trainer(cfg, [], folder, partial="detection" not in module.loss.terms)
    # only now, when every part is known to fit, is the folder touched
    claim(cfg, folder)
    trainer.fit(module, datamodule)
    result = module.final_student("last" if cfg.select == "last" else "holdout")
    results = {}
    if trainer.is_global_zero:
        scores = data.score_student(cfg, result, datamodule)
        about |= {"steps": trainer.global_step}
        save_checkpoint(result, folder / "student.safetensors", about | {"seed": cfg.seed, "scores": scores})
        results = scores | {"student": "student.safetensors", "student_sha256": fingerprint(result)} | about
        write_results(folder, results)
        publish_student(trainer.loggers, cfg, result)
        publish(trainer.loggers, folder, results)
        print(f"student: {folder / 'student.safetensors'}\n{data.summary(scores)}")
    return results


if __name__ == "__main__":
    main()
