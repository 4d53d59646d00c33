"""python -m detkd.features: compare the feature maps of students with their teacher's, in pictures and csv."""

from __future__ import annotations

from omegaconf import DictConfig

from detkd.evaluation.feature_comparison import check_students, compare_features
from detkd.runtime import build
from detkd.runtime.feature_figures import distance_figure, gradient_figure
from detkd.runtime.features import load_students, read_samples, summarise, write_tables
from detkd.runtime.run import claim, device_of, entry_point, output_dir, write_results


@entry_point("features")
def main(cfg: DictConfig) -> dict[str, object]:
    """Run teacher and students over the images; write two pictures, two tables and results.json into the run's folder."""
    folder = output_dir()
    device = device_of(cfg.device)
    teacher = build.required(build.build_detector(cfg.teacher, "teacher"), "teacher")
    students = load_students(cfg.students)
    check_students(students, teacher)
    samples = read_samples(cfg, students, device)
    claim(cfg, folder)
    for detector in (teacher, *students.values()):
        detector.to(device)
    compared = compare_features(
        students,
        teacher,
        samples,
        level=cfg.level,
        score_threshold=cfg.score_threshold,
        box_side=cfg.box_side,
        pictures=cfg.pictures,
        seed=cfg.seed,
    )
    write_tables(folder, compared.students)
    distance_figure(compared.students, compared.images, folder / "channel_distance.png")
    if compared.shown:
        gradient_figure(compared.students, compared.shown, folder / "gradient_norm.png")
    results: dict[str, object] = summarise(compared.students, compared.images)
    write_results(folder, results)
    print(f"pictures: {folder / 'channel_distance.png'}, {folder / 'gradient_norm.png'}")
    return results


if __name__ == "__main__":
    main()
