"""A lineage small enough to be drawn: what came from the same sources, and led to nothing, in one node."""

from __future__ import annotations

from collections.abc import Sequence

from detkd.runtime.report.blocks import is_number, text_of
from detkd.runtime.report.lineage import Lineage, Node
from detkd.runtime.report.scores import set_name

DRAWN = 30  # nodes, above which they are put together
Origin = tuple[str, frozenset[tuple[str, str, str]]]  # the kind of a node, and source, what and by of the edges that lead to it


def grouped(lineage: Lineage, most: int = DRAWN) -> Lineage:
    """The lineage itself up to ``most`` nodes; of a larger one each group of leaves of the same kind and sources is one node."""
    if len(lineage.nodes) <= most:
        return lineage
    sources = {edge.source for edge in lineage.edges}
    into: dict[str, set[tuple[str, str, str]]] = {key: set() for key in lineage.nodes}
    for edge in lineage.edges:
        into[edge.target].add((edge.source, edge.what, edge.by))
    groups: dict[Origin, list[Node]] = {}
    for key, node in lineage.nodes.items():
        if key not in sources:
            groups.setdefault((node.kind, frozenset(into[key])), []).append(node)
    first = {members[0].key: members for members in groups.values()}
    found = Lineage(warnings=lineage.warnings)
    for key, node in lineage.nodes.items():
        if key in sources or key in first:
            members = first.get(key, [node])
            found.nodes[key] = node if len(members) == 1 else _together(members)
    found.edges = [edge for edge in lineage.edges if edge.target in found.nodes]
    return found


def _together(members: Sequence[Node]) -> Node:
    """One node for several, with the span of their scores on each set."""
    scores: dict[str, list[float]] = {}
    for run in (run for node in members for run in node.runs):
        if is_number(run.found.get("ap50")):
            scores.setdefault(set_name(run), []).append(float(run.found["ap50"]))
    notes = [f"AP50 {text_of(min(of))}-{text_of(max(of))} on {name}" for name, of in scores.items()]
    first = members[0]
    return Node(first.key, first.kind, f"{len(members)} {first.kind}s", notes=notes, members=tuple(n.name for n in members))
