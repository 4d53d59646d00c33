"""The cfg parser: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkd.detectors.darknet.architectures import yolov3_sections, yolov3_tiny_sections
from detkd.detectors.darknet.cfg import Section, format_cfg, parse_cfg, with_classes
from detkd.detectors.darknet.network import ACTIVATIONS, Darknet
from detkd.errors import InputError

TEXT = """# a comment
[net]
width = 64   ; in pixels
height=48
width=99

[Convolutional]
filters=18
activation=linear

[yolo]
anchors = 10,13,  16,30, 33,23
classes=1
num=3
"""

word = st.text(string.ascii_lowercase + string.digits + "_-., ", min_size=1, max_size=8).map(str.strip)
option = st.dictionaries(word.filter(bool), word, max_size=4)
keys = ["filters", "size", "stride", "pad", "padding", "groups", "group_id", "layers", "from", "activation", "dilation"]
keys += ["batch_normalize", "classes", "num", "mask", "anchors", "scale_x_y", "probability", "scale", "channels", "width"]
value = st.one_of(
    st.integers(-9, 40).map(str),
    st.lists(st.integers(-4, 9), max_size=6).map(lambda v: ",".join(map(str, v))),
    st.sampled_from([*ACTIVATIONS, "", "nan", "1e400", "0.5", "x", "1_0", "9" * 5000]),
)
kinds = ["net", "convolutional", "maxpool", "dropout", "upsample", "route", "shortcut", "yolo", "sam"]
likely = st.lists(st.tuples(st.sampled_from(kinds), st.dictionaries(st.sampled_from(keys), value, max_size=6)), max_size=6)


def test_reads_sections_options_and_comments() -> None:
    net, conv, head = parse_cfg(TEXT, "a.cfg")
    assert [s.kind for s in (net, conv, head)] == ["net", "convolutional", "yolo"]
    assert net.integer("width") == 64  # the first of two equal keys counts, as in darknet
    assert net.text("height") == "48"
    assert conv.where == "a.cfg, line 7 [convolutional]"
    assert head.numbers("anchors") == [10, 13, 16, 30, 33, 23]
    assert head.number("scale_x_y", 1.05) == 1.05


@given(st.text())
@settings(max_examples=200, deadline=None, database=None)
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        sections = parse_cfg(text)
    except InputError:
        return
    assert sections[0].kind in ("net", "network")


@given(likely)
@settings(max_examples=300, deadline=None, database=None)
def test_any_sections_build_or_are_refused(blocks: list[tuple[str, dict[str, str]]]) -> None:
    text = "[net]\n" + "\n".join(f"[{kind}]\n" + "\n".join(f"{k}={v}" for k, v in o.items()) for kind, o in blocks)
    try:
        with torch.device("meta"):
            network = Darknet(parse_cfg(text))
    except InputError:
        return
    assert network.yolos


@given(st.lists(st.tuples(word.filter(bool), option), max_size=5))
@settings(max_examples=100, deadline=None, database=None)
def test_format_and_parse_are_inverse(blocks: list[tuple[str, dict[str, str]]]) -> None:
    sections = [Section("net", {"width": "8"}, ""), *(Section(kind, options, "") for kind, options in blocks)]
    again = parse_cfg(format_cfg(sections))
    assert [(s.kind, s.options) for s in again] == [(s.kind, s.options) for s in sections]
    assert format_cfg(again) == format_cfg(sections)


@pytest.mark.parametrize("sections", [yolov3_sections(80), yolov3_sections(3, spp=True), yolov3_tiny_sections(1)])
def test_our_architectures_survive_as_text(sections: list[Section]) -> None:
    assert [(s.kind, s.options) for s in parse_cfg(format_cfg(sections))] == [(s.kind, s.options) for s in sections]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x.cfg: expected \[net\] as the first section, found nothing"),
        ("# only\n", "found nothing"),
        ("[convolutional]\nfilters=1", r"found \[convolutional\]"),
        ("width=3\n[net]", r"x.cfg, line 1: expected \[net\] before any option"),
        ("[net]\n\nnonsense", "x.cfg, line 3: expected key=value"),
        ("[net\nwidth=3", r"x.cfg, line 1: expected a section like \[convolutional\], found '\[net'"),
        ("[net]\n[]", "x.cfg, line 2: expected a section"),
    ],
)
def test_bad_text_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_cfg(text, "x.cfg")


def test_bad_values_are_refused_with_key_and_line() -> None:
    section = Section(
        "yolo", {"num": "three", "classes": "-1", "mask": "0,1,b", "scale_x_y": "inf", "filters": "9999999"}, "x, line 4"
    )
    for call, message in (
        (lambda: section.integer("num"), "x, line 4: expected an integer for num, found 'three'"),
        (lambda: section.integer("classes", minimum=1), "expected classes from 1 to 1000000, found -1"),
        (lambda: section.integers("mask"), "expected an integer for mask, found 'b'"),
        (lambda: section.number("scale_x_y", 1.0), "expected a finite number for scale_x_y, found 'inf'"),
        (lambda: section.integer("filters"), "found 9999999"),
        (lambda: section.text("anchors"), "expected a line anchors=..., found none"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_with_classes_changes_heads_alone() -> None:
    before = yolov3_tiny_sections(80)
    after = with_classes(before, 3)
    assert [i for i, (a, b) in enumerate(zip(before, after)) if a.options != b.options] == [16, 17, 23, 24]
    assert after[16].options["filters"] == "24"
    assert before[16].options["filters"] == "255"
    assert [s.options for s in after] == [s.options for s in yolov3_tiny_sections(3)]
