from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from detkd.detectors.checkpoint import save_checkpoint
from detkd.detectors.darknet.detector import yolov3_tiny
from detkd.errors import InputError
from detkd.evaluation.feature_comparison import Comparison
from detkd.evaluation.feature_distance import RegionSums
from detkd.runtime.features import load_students, student_name, summarise, write_tables


def test_names_are_those_of_files_or_runs() -> None:
    assert student_name(Path("a/b/c.safetensors")) == "c"
    assert student_name(Path("runs/object/student.safetensors")) == "object"


def test_a_file_a_list_and_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_checkpoint(yolov3_tiny(("x",), (32, 32), width=0.0625), tmp_path / f"{name}.safetensors")
    one, two = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    assert list(load_students(one)) == ["a"]
    assert list(load_students(OmegaConf.create([two, one]))) == ["b", "a"]
    assert list(load_students(OmegaConf.create({"mine": two}))) == ["mine"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (None, r"students: expected checkpoints, like students=\[a.safetensors,b.safetensors\], found none"),
        ([], "students: expected checkpoints"),
        (["x/a.safetensors", "y/a.safetensors"], r"students: expected files of different names, .* like students=\{a: x/a"),
        (["no/such.safetensors"], "no/such.safetensors"),
    ],
)
def test_students_that_cannot_be_loaded(node: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_students(None if node is None else OmegaConf.create(node))


def test_tables_leave_a_region_without_cells_empty(tmp_path: Path) -> None:
    distance = RegionSums(*(torch.tensor(v, dtype=torch.float64) for v in ([0.0, 0.0], [3.0, 6.0], [0.0, 3.0])))
    norm = RegionSums(*(torch.tensor(v, dtype=torch.float64) for v in ([2.0], [3.0], [4.0, 3.0])))
    compared = {"a": Comparison("p3", distance, {"p3": norm})}
    write_tables(tmp_path, compared)
    with (tmp_path / "channel_distance.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["student", "channel", "object", "background"],
            ["a", "0", "", "1"],
            ["a", "1", "", "2"],
        ]
    with (tmp_path / "gradient_norm.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["student", "level", "object", "background"], ["a", "p3", "0.5", "1"]]
    student = {
        "level": "p3",
        "distance": {"object": None, "background": 1.5},
        "gradient_norm": {"object": 0.5, "background": 1.0},
    }
    assert summarise(compared, 7) == {"images": 7, "students": {"a": student}}
