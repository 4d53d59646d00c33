"""python -m detkd.demo: from a frozen detector to a distilled student, in a few commands that anyone could type.

Inverts the built-in detector, distills a fresh student on the images alone, and a control student on pure noise for as many
steps; scores all of them on scenes that none of them saw; writes results.json and a page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from detkd.data.scenes import write_coco
from detkd.runtime.page import demo_page
from detkd.runtime.run import write_json, write_text

TEST_SEED, TEST_IMAGES = 2026, 300  # never used to choose a setting
QUICK_IMAGES, QUICK_INVERT, QUICK_DISTILL = 20, ["n_images=8", "batch_size=8", "iterations=6"], ["steps=8", "batch_size=4"]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the demo; return what results.json says."""
    parser = argparse.ArgumentParser(prog="python -m detkd.demo", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to write to (default runs/demo, or runs/demo-quick)")
    parser.add_argument("--real", action="store_true", help="also distill a student on real scenes, for comparison")
    parser.add_argument(
        "--quick", action="store_true", help="a miniature that shows that it runs, in a minute; scores mean nothing"
    )
    options = parser.parse_args(arguments)
    out: Path = options.out or Path("runs/demo-quick" if options.quick else "runs/demo")
    less_invert, less_distill = (QUICK_INVERT, QUICK_DISTILL) if options.quick else ([], [])
    start = time.perf_counter()

    scenes = out / "scenes"
    if not (scenes / "instances.json").is_file():
        write_coco(scenes, QUICK_IMAGES if options.quick else TEST_IMAGES, TEST_SEED)
    run("invert", "+experiment=scenes_invert", f"out={out / 'images'}", *less_invert)
    students = {"student": [f"data.root={out / 'images'}"], "noise": ["data=noise"]}
    if options.real:
        students["real"] = ["data=scenes", "data.train_images=384", "data.train_seed=9"]
    for name, data in students.items():
        run("distill", "+experiment=scenes_student", *data, f"out={out / name}", *less_distill)
    run("evaluate", "teacher=scenes", f"data.root={scenes}", f"out={out / 'teacher_scores'}")
    for name in students:
        checkpoint = [f"teacher.path={out / name / 'student.safetensors'}", f"data.root={scenes}"]
        run("evaluate", "teacher=checkpoint", *checkpoint, f"out={out / f'{name}_scores'}")

    scores = {n: json.loads((out / f"{n}_scores/results.json").read_text())["ap50"] for n in ("teacher", *students)}
    results = {f"{name}_ap50": value for name, value in scores.items()}
    results |= {"ratio": scores["student"] / max(scores["teacher"], 1e-9), "seconds": time.perf_counter() - start}
    write_json(out / "results.json", results)
    write_text(out / "results.html", demo_page(out, results))
    print(json.dumps(results, indent=2), f"\nsee {out / 'results.html'}", flush=True)
    return results


def run(command: str, *arguments: str) -> None:
    """Print a command and run it; its failure is ours."""
    print(f"\n$ python -m detkd.{command} {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, "-m", f"detkd.{command}", *arguments], check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
