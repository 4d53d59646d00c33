from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from detkd.errors import InputError
from detkd.runtime import store
from detkd.runtime.build import build_stages
from detkd.runtime.run import config_dir, write_results


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(
            "invert", ["teacher=checkpoint", "teacher.path=t.safetensors", "logger=none", "callbacks=none", *overrides]
        )


def recipe(doubles: Any, *overrides: str, **teacher: Any) -> dict[str, Any]:
    cfg = config(*overrides)
    return store.recipe(cfg, build_stages(cfg), doubles.TinyDetector(**teacher))


@pytest.mark.parametrize(
    "override",
    ["seed=1", "n_images=5", "batch_size=5", "loss.tv.weight=9", "layout.seed=1", "image=pixels", "augmentation=none", "look_every=1", "iterations=5", "resolution=64", "trainer.precision=bf16-mixed", "fold=false", "sampling=false_positives", "warm_start=bank", "accept.attempts=2", "accept.agreement=0.5"],
)  # fmt: skip
def test_what_changes_images_changes_the_recipe(doubles: Any, override: str) -> None:
    assert recipe(doubles, override) != recipe(doubles)


def test_another_detector_changes_the_recipe(doubles: Any) -> None:
    assert recipe(doubles, width=16) != recipe(doubles)


@pytest.mark.parametrize(
    "override",
    ["out=elsewhere", "trainer.devices=2", "verify_every=7", "worker=1", "log_every=1", "teacher.path=copy.safetensors"],
)
def test_where_and_how_watched_a_run_is_does_not(doubles: Any, override: str) -> None:
    assert recipe(doubles, override) == recipe(doubles)


def test_the_verifier_judges_each_image_so_it_is_in_the_recipe(doubles: Any) -> None:
    cfg, teacher = config(), doubles.TinyDetector()
    plain = store.recipe(cfg, build_stages(cfg), teacher)
    assert plain["verifier"] is None
    assert store.recipe(cfg, build_stages(cfg), teacher, doubles.TinyDetector()) != plain


def test_labels_count_by_content_not_by_path(doubles: Any, tmp_path: Path) -> None:
    def of(name: str, content: str) -> dict[str, Any]:
        (tmp_path / name).write_text(content)
        return recipe(doubles, "layout=from_labels", f"layout.annotations={tmp_path / name}")

    assert of("a.json", "{}") == of("b.json", "{}")
    assert of("a.json", "{}") != of("b.json", "[]")


def test_short_and_long_ways_to_say_the_same_stages_are_one_recipe(doubles: Any) -> None:
    (stage,) = build_stages(config())
    height, width = stage.resolution
    said = recipe(doubles, f"iterations={stage.iterations}", f"resolution=[{height},{width}]")
    assert said == recipe(doubles)


def detector(doubles: Any, *classes: str) -> Any:
    torch.manual_seed(0)
    return doubles.TinyDetector(classes=classes, image_size=(32, 32))


def open_writer(folder: Path, teacher: Any, *overrides: str) -> Any:
    cfg = config("resolution=32", *overrides)
    return store.open_writer(cfg, folder, teacher, None, build_stages(cfg))


def test_a_folder_takes_the_same_run_again_and_refuses_another(tmp_path: Path, doubles: Any) -> None:
    teacher = detector(doubles, "a", "b")
    (tmp_path / "config.yaml").write_text("")  # what a run leaves beside its set is no obstacle
    open_writer(tmp_path, teacher)
    open_writer(tmp_path, teacher)
    with pytest.raises(InputError, match=r"differs in .*seed: 0 there, 1 here"):
        open_writer(tmp_path, teacher, "seed=1")
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.head.bias.add_(1)
    with pytest.raises(InputError, match="teacher_sha256"):
        open_writer(tmp_path, other)


def test_a_folder_with_foreign_files_is_refused(tmp_path: Path, doubles: Any) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"holiday\.jpg"):
        open_writer(tmp_path, detector(doubles, "a"))


@pytest.mark.parametrize(("done", "images"), [(set(), 0), ({0}, 4), ({2}, 2), ({0, 1, 2}, 10)])
def test_images_in_counts_the_smaller_last_batch(done: set[int], images: int) -> None:
    assert store.images_in(config("n_images=10", "batch_size=4"), done) == images


class Finds:
    """A detector that finds the given boxes in every image."""

    def __init__(self, real: Any, box: list[float], label: int) -> None:
        self.spec, self.box, self.label = real.spec, box, label

    def to(self, device: Any) -> Finds:
        return self

    def eval(self) -> Finds:
        return self

    def modules(self) -> list[Any]:
        return []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        box, label, score = torch.tensor([self.box]), torch.tensor([self.label]), torch.tensor([0.9])
        return [{"boxes": box, "labels": label, "scores": score} for _ in images]


def test_scores_are_of_the_images_as_stored_and_the_verifier_reads_its_own_labels(tmp_path: Path, doubles: Any) -> None:
    teacher = detector(doubles, "a", "b")
    writer = open_writer(tmp_path, teacher)
    box = [2.0, 2, 20, 20]
    targets: Any = [{"boxes": torch.tensor([box]), "labels": torch.tensor([0])}] * 3
    record = {"objects_start": 2, "accepted": True, "agreement": 0.5}
    records = [record, record | {"accepted": False}, record]
    writer.write_shard(0, torch.zeros(3, 3, 32, 32, dtype=torch.uint8), targets, records)
    made = writer.finish(1)
    right, wrong = Finds(teacher, box, 0), Finds(teacher, box, 1)
    judges: dict[str, Any] = {"right": right, "wrong": wrong}
    assert store.score_images(made, judges["right"], None) == {
        "teacher_ap50": 1.0,
        "verifier_ap50": None,
        "teacher_by_size": {"small": 1.0, "medium": None, "large": None},
        "teacher_by_class": {"a": 1.0},
        "objects_per_image": 1.0,
        "objects_per_image_start": 2.0,
        "accepted": 2 / 3,
        "agreement": 0.5,
    }
    assert store.score_images(made, judges["wrong"], None)["teacher_ap50"] == 0.0
    verifier: Any = Finds(detector(doubles, "c", "b", "a"), box, 2)  # "a" is label 2 there
    scores = store.score_images(made, judges["right"], verifier)
    assert (scores["verifier_ap50"], scores["verifier_by_class"]) == (1.0, {"a": 1.0})
    ignorant: Any = Finds(detector(doubles, "a", "c"), box, 0)
    with pytest.raises(InputError, match=r"verifier: expected a detector that knows the teacher's classes.*without \['b'\]"):
        store.score_images(made, judges["right"], ignorant)
    assert store.score_images(writer.finish(1, "drop"), judges["right"], None)["accepted"] == 1.0


def test_speed_is_that_of_the_run_that_made_the_images(tmp_path: Path) -> None:
    first = {"images": 8, "seconds": 4.0, "compile_seconds": 3.0, "images_per_second": 2.0}
    assert store.speed(tmp_path, images=8, made=8, seconds=4.0, compile_seconds=3.0) == first
    write_results(tmp_path, first | {"teacher_ap50": 0.5})
    assert store.speed(tmp_path, images=8, made=0, seconds=0.1) == first
    again = {"images": 8, "seconds": 1.0, "compile_seconds": 0.0, "images_per_second": 2.0}
    assert store.speed(tmp_path, images=8, made=2, seconds=1.0) == again


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}"])
def test_speed_without_earlier_results(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert store.speed(tmp_path, images=8, made=0, seconds=0.1)["images_per_second"] == 0


def test_summary_is_one_line_with_and_without_a_verifier() -> None:
    results = {"images": 8, "teacher_ap50": 0.9, "verifier_ap50": None}
    results |= {"seconds": 4.0, "compile_seconds": 0.0, "images_per_second": 2.0}
    assert store.summary(results | {"compile_seconds": 75.2}).endswith("4 s, 2.000 images/s after 75 s of compilation")
    assert store.summary(results) == "8 images, teacher AP50 0.900, 4 s, 2.000 images/s"
    assert "verifier AP50 0.500" in store.summary(results | {"verifier_ap50": 0.5})
