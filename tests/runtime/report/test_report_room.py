from __future__ import annotations

from detkd.runtime.report.markup import Html
from detkd.runtime.report.room import Part, fitting, shown


def test_parts_fit_by_rank_and_then_small_ones_first() -> None:
    parts = [Part("a", Html("x" * 10), 1), Part("b", Html("x" * 4), 1), Part("c", Html("x" * 8), 0), Part("ü", Html("ü"), 2)]
    assert [parts[i].title for i in range(4) if id(parts[i]) in fitting(parts, 14)] == ["b", "c", "ü"]
    assert fitting(parts, 0) == set()


def test_what_is_left_out_is_named_in_one_line() -> None:
    parts = [Part(f"<{i}>", Html(str(i)), 0) for i in range(12)]
    assert shown(parts, {id(part) for part in parts}) == [str(i) for i in range(12)]
    *kept, said = shown(parts, {id(parts[3])})
    assert kept == ["3"]
    assert "Left out, the page would be too large: &lt;0&gt;, &lt;1&gt;" in said
    assert "and 3 more" in said
