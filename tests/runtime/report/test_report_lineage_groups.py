from __future__ import annotations

from pathlib import Path

from detkd.runtime.report.lineage import Edge, Lineage, Node
from detkd.runtime.report.lineage_chart import lineage_chart
from detkd.runtime.report.lineage_groups import grouped
from detkd.runtime.report.runs import Run


def scored(name: str, ap50: float) -> Run:
    return Run(name, Path("/runs") / name, "distill", {}, {"ap50": ap50, "scored_on": "/data/x"})


def family(students: int, sets: int = 2) -> Lineage:
    """A teacher, sets of it, and so many students of each set."""
    nodes = {"t": Node("t", "detector", "teacher", "0" * 64)}
    edges = []
    for s in range(sets):
        nodes[f"s{s}"] = Node(f"s{s}", "set", f"set {s}", str(s) * 64)
        edges.append(Edge("t", f"s{s}", "inverted from", "hash"))
        for i in range(students):
            key = f"s{s}/{i}"
            nodes[key] = Node(key, "detector", f"student <{key}>", runs=[scored(key, 0.25 + i / 100)])
            edges += [Edge(f"s{s}", key, "trained on", "hash"), Edge("t", key, "taught by", "hash")]
    return Lineage(nodes, edges, ["a warning"])


def test_a_small_lineage_stays_as_it_is() -> None:
    lineage = family(3)
    assert grouped(lineage) is lineage


def test_leaves_of_the_same_sources_are_one_node() -> None:
    lineage = family(30)
    small = grouped(lineage)
    assert len(lineage.nodes) == 63  # the table and the files keep them all
    assert [node.name for node in small.nodes.values()] == ["teacher", "set 0", "30 detectors", "set 1", "30 detectors"]
    group = small.nodes["s0/0"]
    assert group.notes == ["AP50 0.250-0.540 on data/x"]
    assert group.members[:2] == ("student <s0/0>", "student <s0/1>")
    assert {(e.source, e.target) for e in small.edges} == {
        *(("t", f"s{s}") for s in (0, 1)),
        *((source, f"s{s}/0") for s in (0, 1) for source in ("t", f"s{s}")),
    }
    assert small.warnings == ["a warning"]
    drawn = lineage_chart(small, {})
    assert drawn.count("<rect") == 5
    assert "student &lt;s0/0&gt; and more" in drawn
    group.notes = ["AP50 0.250-0.540 on a set of a long name"]
    assert ">AP50 0.250-0.540 on a set of …<" in lineage_chart(small, {})


def test_what_has_other_sources_or_led_to_something_stays_apart() -> None:
    lineage = family(29, 1)
    lineage.nodes["other"] = Node("other", "detector", "of another kind")
    lineage.edges.append(Edge("s0", "other", "trained on", "path"))
    lineage.edges.append(Edge("s0/0", "s0/1", "taught by", "hash"))
    assert [node.name for node in grouped(lineage).nodes.values()] == [
        *("teacher", "set 0", "student <s0/0>", "student <s0/1>", "27 detectors", "of another kind")
    ]
