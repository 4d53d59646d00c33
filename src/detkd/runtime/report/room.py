"""What a page has room for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from detkd.runtime.report.markup import Html, element


@dataclass(frozen=True)
class Part:
    """Something that may be left out where the page would be too large. rank: lower ones are kept first."""

    title: str
    markup: Html
    rank: int


def fitting(parts: Sequence[Part], room: int) -> set[int]:
    """The ids of the parts that fit into ``room`` bytes: by rank, small ones first."""
    kept = set()
    sized = sorted((part.rank, len(part.markup.encode()), i) for i, part in enumerate(parts))
    for _, size, i in sized:
        if size <= room:
            room -= size
            kept.add(id(parts[i]))
    return kept


def shown(parts: Sequence[Part], kept: Collection[int]) -> list[Html]:
    """The parts in order; of those that are not kept, one line that names them at the end."""
    found = [part.markup for part in parts if id(part) in kept]
    if missing := [part.title for part in parts if id(part) not in kept]:
        names = ", ".join(missing[:_NAMES]) + (f" and {len(missing) - _NAMES} more" if len(missing) > _NAMES else "")
        said = f"Left out, the page would be too large: {names}. Their numbers are in report.csv."
        found.append(element("p", {"class": "note"}, said))
    return found


_NAMES = 8  # of parts left out, that are said
