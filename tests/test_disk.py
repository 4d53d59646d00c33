"""Whole files, stable json, checksums."""

from pathlib import Path

import pytest

from detkd.disk import differences, dump_json, parse_json, read_checked, replace_file, sha256
from detkd.errors import InputError


def test_json_is_the_same_whatever_the_order() -> None:
    assert dump_json({"b": [1.5, None], "a": 1}) == dump_json({"a": 1, "b": [1.5, None]})
    assert parse_json(dump_json({"b": [1.5]}), Path("x")) == {"b": [1.5]}
    with pytest.raises(ValueError):
        dump_json({"a": float("nan")})


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000])
def test_parse_names_the_file(content: bytes) -> None:
    with pytest.raises(InputError, match=r"some\.json"):
        parse_json(content, Path("some.json"))


def test_checksums(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(b"abc") == known
    assert read_checked(tmp_path / "a", known) == b"abc"
    replace_file(tmp_path / "a", b"abd")
    with pytest.raises(InputError, match="damaged or changed"):
        read_checked(tmp_path / "a", known)
    with pytest.raises(InputError, match="found none"):
        read_checked(tmp_path / "b", known)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_differences_name_the_keys() -> None:
    assert list(differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "d": 3})) == ["a.c: 2 there, 4 here"]
    assert list(differences({}, {"x": 1})) == ["x: None there, 1 here"]
