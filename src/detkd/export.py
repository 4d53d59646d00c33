"""python -m detkd.export: write a student as files that other programs run, and check that they say what it says."""

from __future__ import annotations

from omegaconf import DictConfig

from detkd.runtime import build
from detkd.runtime.export import check_folder, check_formats, check_weights, export_student, read_images
from detkd.runtime.provenance import read_provenance
from detkd.runtime.run import entry_point, output_dir


@entry_point("export")
def main(cfg: DictConfig) -> dict[str, object]:
    """Write the files, README.md, parity.json and results.json into the run's folder, all or none."""
    folder = output_dir()
    check_weights(cfg.student)
    check_folder(cfg, folder)
    student = build.required(build.build_detector(cfg.student, "student"), "student")
    formats = check_formats(cfg.formats, student)
    images = read_images(cfg, student.spec)
    results = export_student(cfg, student, formats, images, read_provenance(cfg.student), folder)
    print(f"written: {folder}")
    return results


if __name__ == "__main__":
    main()
