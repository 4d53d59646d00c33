from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from detkd.runtime.static import announce, fill_page, source_hash


@pytest.mark.parametrize(
    ("encoding", "name", "said"),
    [("utf-8", os.fsdecode(b"b\xff\xc3\xbc"), "b?ü"), ("ascii", "ü", "?"), ("utf-8", "a b", "a b")],
)
def test_any_name_of_a_page_can_be_said(encoding: str, name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, write_through=True))
    announce(Path("/out") / name / "index.html")
    assert written.getvalue().decode(encoding) == f"open /out/{said}/index.html\n"


def test_a_page_allows_its_own_style_and_script_alone() -> None:
    page = fill_page(
        "{{policy}}|{{script}}|{{text}}", style="p{}", script="1 + 1", images="data:", texts={"text": "{{script}}"}
    ).decode()
    policy, script, text = page.split("|")
    assert f"script-src {source_hash('1 + 1')};" in policy
    assert "default-src 'none'" in policy
    assert (script, text) == ("1 + 1", "{{script}}")  # what is put in is not filled again
    assert source_hash("") == "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
