from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detkd.errors import InputError
from detkd.runtime.report.lineage import Edge, Lineage, Node, detector_name, layers, trace
from detkd.runtime.report.lineage_chart import lineage_chart
from detkd.runtime.report.runs import Run

T, S, D = "t" * 64, "s" * 64, "d" * 64


def inverted(name: str = "set", teacher: str = T, sha256: str = D, recipe: Any = None) -> Run:
    manifest = {"recipe": recipe or {}, "teacher_sha256": teacher, "images": 8}
    kind = "tile" if recipe else "invert"
    return Run(name, Path("/runs") / name, kind, {"teacher": {"name": "big"}}, {}, manifest, sha256)


def distilled(name: str = "student", root: str | None = "/moved/away", **results: Any) -> Run:
    found = {"student_sha256": S, "teacher_sha256": T, "data_sha256": D, "ap50": 0.5, "scored_on": "/data/x"} | results
    return Run(name, Path("/runs") / name, "distill", {"data": {"root": root}, "teacher": {"name": "big"}}, found)


def links(lineage: Lineage) -> set[tuple[str, str, str, str]]:
    return {(e.target.split(":")[0], e.what, lineage.nodes[e.source].name, e.by) for e in lineage.edges}


def test_a_student_is_linked_to_its_set_and_teacher_by_hash_though_the_files_moved() -> None:
    lineage = trace([distilled(), inverted()])
    assert links(lineage) == {
        ("set", "inverted from", "big", "hash"),
        ("detector", "taught by", "big", "hash"),
        ("detector", "trained on", "set", "hash"),
    }
    assert [[node.name for node in layer] for layer in layers(lineage)] == [["big"], ["set"], ["student"]]
    assert lineage.warnings == []
    student = lineage.nodes[f"detector:{S}"]
    assert student.notes == ["AP50 0.500 on data/x"]


def test_an_evaluation_goes_to_the_detector_of_its_hash() -> None:
    scores = Run(
        "scores",
        Path("/runs/scores"),
        "evaluate",
        {"teacher": {"path": "gone"}, "data": {"root": "/data/y"}},
        {"detector_sha256": S, "ap50": 0.7},
    )
    lineage = trace([scores, distilled()])
    assert [run.name for run in lineage.nodes[f"detector:{S}"].runs] == ["student", "scores"]
    assert lineage.nodes[f"detector:{S}"].notes[-1] == "AP50 0.700 on data/y"


def test_without_hashes_the_place_links_and_the_file_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "student.safetensors").write_bytes(b"x")
    made = Run("set", tmp_path / "set", "invert", {"teacher": {}}, {}, {"recipe": {}, "teacher_sha256": T}, D)
    config = {"data": {"root": str(tmp_path / "set")}}
    old = Run("student", tmp_path / "student", "distill", config, {"teacher_sha256": T, "student": "student.safetensors"})
    scores = Run(
        "s",
        tmp_path / "s",
        "evaluate",
        {"teacher": {"path": str(tmp_path / "student/student.safetensors")}, "data": {}},
        {"ap50": 0.1},
    )
    lineage = trace([made, old, scores], hash_file=lambda path: S if path.read_bytes() == b"x" else "")
    assert ("detector", "trained on", "set", "path") in links(lineage)
    assert [run.name for run in lineage.nodes[f"detector:{S}"].runs] == ["student", "s"]

    def damaged(path: Path) -> str:
        raise InputError(f"{path}: damaged")

    assert "damaged" in trace([old], hash_file=damaged).warnings[0]


def test_what_does_not_fit_is_said() -> None:
    changed = trace([inverted("set", sha256="e" * 64), distilled(root="/runs/set")])
    assert "is not the one that was trained on" in changed.warnings[0]
    assert ("detector", "trained on", "set", "hash") in links(changed)  # the images of that hash, which no run has
    assert len([node for node in changed.nodes.values() if node.kind == "set"]) == 2
    foreign = trace([inverted(teacher="f" * 64), distilled()])
    assert "was made of another detector than its teacher" in foreign.warnings[0]


def test_tilings_scenes_and_noise_are_sources_too() -> None:
    tiled = inverted("tiled", sha256="e" * 64, recipe={"kind": "tiling", "source": {"manifest_sha256": D}})
    assert ("set", "tiled from", "set", "hash") in links(trace([inverted(), tiled]))
    assert ("set", "tiled from", "images", "hash") in links(trace([tiled]))
    noise = Run(
        "n",
        Path("/n"),
        "distill",
        {"data": {"_target_": "detkd.data.noise.noise_datamodule", "images": 8, "noise_seed": 0}},
        {"teacher_sha256": None, "student_sha256": S},
    )
    lineage = trace([noise])
    assert links(lineage) == {("detector", "trained on", "noise", "path")}
    assert next(n for n in lineage.nodes.values() if n.name == "noise").notes == ["8 images, seed 0"]


def test_a_circle_of_paths_still_ends_and_is_drawn() -> None:
    # a student whose teacher has its own hash: no run does that, but files may say it
    lineage = trace([distilled(teacher_sha256=S)])
    drawn = lineage_chart(lineage, {})
    assert drawn.startswith("<svg")


def test_names_in_the_drawing_are_text() -> None:
    run = distilled("<script>alert(1)</script>")
    drawn = lineage_chart(trace([run]), {f"detector:{S}": '#"><script>'})
    assert "<script" not in drawn
    assert "&lt;script&gt;" in drawn


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ({"path": "/runs/a/student.safetensors"}, "a/student.safetensors"),
        ({"_target_": "detkd.assets.builtin", "name": "scenes_teacher"}, "scenes_teacher"),
        ({"detector": {"_target_": "detkd.detectors.torchvision.SSD"}}, "SSD"),
        ({"weights": {"name": "yolo-1.1-xl.weights"}, "detector": {"_target_": "a.from_cfg"}}, "yolo-1.1-xl"),
        ({"detector": {"_target_": "a.from_cfg", "cfg": {"name": "yolo-1.1.cfg"}}}, "yolo-1.1"),
        ({}, "a detector"),
        (None, "a detector"),
    ],
)
def test_what_a_config_calls_its_detector(node: Any, name: str) -> None:
    assert detector_name(node) == name


def test_detectors_without_a_hash_are_told_apart_by_their_place_or_settings() -> None:
    def scores(run: str, ap50: float, **teacher: Any) -> Run:
        return Run(run, Path("/runs") / run, "evaluate", {"teacher": teacher, "data": {"root": "/d/y"}}, {"ap50": ap50})

    lineage = trace(
        [
            scores("a", 0.5, path="/m/student.safetensors"),
            scores("b", 0.7, path="/x/m/student.safetensors"),
            scores("c", 0.6, path="/x/../m/student.safetensors"),
            scores("d", 0.1, name="big", seed=0),
            scores("e", 0.2, name="big", seed=1),
        ]
    )
    assert [(node.name, [run.name for run in node.runs]) for node in lineage.nodes.values()] == [
        ("/m/student.safetensors", ["a", "c"]),
        ("/x/m/student.safetensors", ["b"]),
        ("big", ["d"]),
        ("big", ["e"]),
    ]


def test_no_file_of_another_folder_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    asked: list[Path] = []
    run = Run("r", tmp_path / "run", "distill", {"data": {}}, {"student": "../secret"})
    trace([run], hash_file=lambda path: str(asked.append(path)))
    assert asked == []


def test_a_source_stands_just_before_what_came_of_it() -> None:
    real = distilled("real student", data_sha256=None, root="/photos", student_sha256="9" * 64)
    columns = layers(trace([inverted(), distilled(), real]))
    assert [[node.name for node in layer] for layer in columns] == [["big", "photos"], ["set", "real student"], ["student"]]
    late = trace([inverted(), distilled()])
    late.nodes["photos"] = Node("photos", "set", "photos")
    late.edges.append(Edge("photos", f"detector:{S}", "trained on", "path"))
    assert [[node.name for node in layer] for layer in layers(late)] == [["big"], ["set", "photos"], ["student"]]
