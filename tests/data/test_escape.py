"""Names of a set in YAML, Markdown and scripts: whatever they hold, they stay names."""

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from detkd.data.escape import markdown_code, markdown_text, one_line, script_json, yaml_string

NASTY = [
    "yes",
    "1e3",
    "it's",
    'say "no"',
    "a: b # c",
    "- x",
    "\u2028\u2029\x85\x00\x7f\ufeff",
    "\U0001f600 漢字",
    "a\nb",
    "{x}",
    "</script>",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_yaml_gives_the_text_back(text: str) -> None:
    assert yaml.safe_load(f"0: {yaml_string(text)}\n") == {0: text}


@given(st.text())
def test_yaml_gives_any_text_back(text: str) -> None:
    assert yaml.safe_load(f"- {yaml_string(text)}\n") == [text]


def test_lone_surrogates_do_not_stop_a_file_from_being_written() -> None:
    assert yaml_string("a\ud800").encode() == b'"a?"'
    assert one_line("a\ud800").encode() == b"a?"


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text + "x").splitlines()) == 1


def test_markdown_text_has_no_markup() -> None:
    assert markdown_text("a|b") == r"a\|b"
    assert markdown_text("<b>[x](y) *z* `c`\n# d") == r"\<b\>\[x\](y) \*z\* \`c\` \# d"
    assert markdown_text("stop sign, 2.5-inch") == "stop sign, 2.5-inch"


@pytest.mark.parametrize(
    ("text", "code"), [("a", "`a`"), ("a`b", "`` a`b ``"), ("", "`  `"), ("a|b", r"`a\|b`"), ("``", "``` `` ```")]
)
def test_markdown_code(text: str, code: str) -> None:
    assert markdown_code(text) == code


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_script_json_is_json_that_cannot_leave_its_script(value: object) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert re.fullmatch(r"[ -;=-~]*", text)  # ASCII, no line break, no "<"


def test_script_json_knows_no_nan() -> None:
    with pytest.raises(ValueError):
        script_json([float("nan")])
