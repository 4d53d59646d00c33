"""The gallery's files: what the page is told, that it is closed in itself, and that nothing of a set can become code."""

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from detkd.data.store import StoreWriter, open_store
from detkd.disk import dump_json
from detkd.errors import InputError
from detkd.runtime.gallery import gallery_data, gallery_page, read_scores, write_gallery
from detkd.structures import Target

CLASSES = ("cat", "</script><script>alert(1)</script>", "\u2028<!--", "__proto__")


def make_store(root: Path, classes: tuple[str, ...] = CLASSES, trace: Any = None) -> Path:
    recipe = {"teacher": {"architecture": "<b>Net</b>"}}
    writer = StoreWriter(root, recipe, classes, (16, 24), teacher_sha256="f" * 64, seed=7)
    images = torch.randint(0, 256, (5, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[4] = images[1]
    targets = [Target(boxes=torch.tensor([[0.04, 1.0, 10.26 + i, 16.0]]), labels=torch.tensor([i % 2])) for i in range(5)]
    targets[2] = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    records: list[dict[str, Any]] = [{"teacher_score": 0.25 * i, "accepted": i > 1, "__proto__": [i]} for i in range(5)]
    del records[3]["teacher_score"]
    writer.write_shard(0, images[:3], targets[:3], records[:3], trace)
    writer.write_shard(1, images[3:], targets[3:], records[3:])
    writer.finish(2)
    return root


def told(page: Path) -> dict[str, Any]:
    """What gallery.js says."""
    match = re.fullmatch(r"window\.detkdGallery=(\{.*\});\n", (page.parent / "gallery.js").read_bytes().decode("ascii"))
    assert match is not None
    assert "<" not in match[1]
    return json.loads(match[1])


class Page(HTMLParser):
    """What a page refers to, and the text of its inline scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.policy = ""
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data") and v]
        assert not [k for k in given if k.startswith("on") or k == "style"]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        self._in = tag if tag in self.inline and "src" not in given else None

    def handle_endtag(self, tag: str) -> None:
        self._in = None

    def handle_data(self, data: str) -> None:
        if self._in is not None:
            self.inline[self._in].append(data)


def test_what_the_page_is_told(tmp_path: Path) -> None:
    root = make_store(tmp_path / "set", trace={"iterations": [0, 10, 20], "loss": [9.0, 2.123456, 1.0], "objects": [1, 1, 2]})
    for name in ("000001/000001.png", "000000/000000.png", "000009/000000.png", "000000/1.png", "000000/0a.png"):
        (root / "pictures" / "steps" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pictures" / "steps" / name).write_bytes(b"")
    page = write_gallery(root, scores={"teacher_ap50": 0.5, "verifier_ap50": None, "seconds": 3})
    assert page == root / "gallery" / "index.html"
    found = told(page)
    assert found["root"] == ".."
    assert found["classes"] == list(CLASSES)
    assert found["size"] == [16, 24]
    assert found["files"] == [0, 1, 2, 1_000_000, 1_000_001]
    assert found["counts"] == [1, 1, 0, 1, 1]
    assert found["boxes"][:4] == [0, 1, 10.3, 16]
    assert found["labels"] == [0, 1, 1, 0]
    assert found["records"] == [
        ["__proto__", [[0], [1], [2], [3], [4]]],
        ["accepted", [False, False, True, True, True]],
        ["teacher_score", [0.0, 0.25, 0.5, None, 1.0]],
    ]
    assert found["duplicates"] == [[4, 1]]
    assert found["steps"] == [0, 4]
    assert found["courses"] == {"0": {"iterations": [0, 10, 20], "loss": [9.0, 2.123, 1.0], "objects": [1.0, 1.0, 2.0]}}
    assert found["facts"] == {
        "numbers": [["teacher AP50", 0.5]],
        "words": ["teacher <b>Net</b>", "weights ffffffffffff", "seed 7"],
    }


def test_a_set_without_records_and_names(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, {}, ("a",), (8, 8), teacher_sha256="", seed=0)
    writer.write_shard(
        0, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long())]
    )
    writer.finish(1)
    found = told(write_gallery(tmp_path))
    assert (found["records"], found["boxes"], found["courses"]) == ([], [], {})
    assert found["facts"] == {"numbers": [], "words": ["seed 0"]}


@pytest.mark.parametrize(
    "trace",
    [
        {"iterations": [1], "loss": [1.0]},
        {"iterations": [1, 2], "loss": [1.0]},
        {"iterations": [1, 2], "loss": [1.0, None]},
        {"loss": [1.0, 2.0]},
        {"iterations": 3},
    ],
)
def test_courses_that_do_not_hold_together_are_left_out(trace: Any, tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path, trace=trace))
    assert gallery_data(store, [None] * 5, "..")["courses"] == {}


def test_long_courses_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    trace = {"iterations": list(range(1000)), "loss": [float(i) for i in range(1000)]}
    course = gallery_data(open_store(make_store(tmp_path, trace=trace)), [None] * 5, "..")["courses"]["0"]
    assert len(course["iterations"]) == len(course["loss"]) == 64
    assert course["iterations"][0] == course["loss"][0] == 0
    assert course["iterations"][-1] == course["loss"][-1] == 999


def test_links_lead_from_anywhere_to_the_set(tmp_path: Path) -> None:
    root = make_store(tmp_path / "a set#1?%")
    assert told(write_gallery(root, tmp_path / "pages" / "deep"))["root"] == "../../a%20set%231%3F%25"
    assert told(write_gallery(root, root))["root"] == "."


def test_links_lead_to_a_name_in_bytes_of_no_encoding(tmp_path: Path) -> None:
    try:
        root = make_store(tmp_path / os.fsdecode(b"b\xff"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert told(write_gallery(root, tmp_path / "page"))["root"] == "../b%FF"


def test_the_page_holds_all_that_it_runs_and_asks_for_nothing_else() -> None:
    text = gallery_page().decode()
    page = Page(text)
    assert sorted(page.addresses) == ["data:,", "gallery.js"]
    assert "{{" not in text
    for kind in ("script", "style"):
        (content,) = page.inline[kind]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src" in page.policy
        assert f"'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'")
    assert "unsafe" not in page.policy
    (script,) = page.inline["script"]
    # the set's text reaches the page as text alone, and the page reaches nothing by itself
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "XMLHttpRequest",
        "import(",
    ):
        assert word not in script
    for address in re.findall(r"https?://[^\s\"']+", text):
        assert address == "http://www.w3.org/2000/svg"  # the name of a namespace


def test_the_same_set_gives_the_same_files(tmp_path: Path) -> None:
    pages = [write_gallery(make_store(tmp_path / name / "set")) for name in ("a", "b")]
    for name in ("index.html", "gallery.js"):
        assert len({(page.parent / name).read_bytes() for page in pages}) == 1
    before = (pages[0].parent / "gallery.js").read_bytes()
    assert write_gallery(tmp_path / "a" / "set") == pages[0]
    assert (pages[0].parent / "gallery.js").read_bytes() == before
    assert sorted(p.name for p in pages[0].parent.iterdir()) == ["gallery.js", "index.html"]


def test_it_overwrites_no_other_page(tmp_path: Path) -> None:
    root = make_store(tmp_path / "set")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("<h1>mine</h1>")
    with pytest.raises(InputError, match=r"index\.html: expected none, or a gallery to replace"):
        write_gallery(root, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["index.html"]
    with pytest.raises(InputError, match="found a file"):
        write_gallery(root, tmp_path / "mine" / "index.html")


def test_it_wants_a_complete_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the manifest of a store"):
        write_gallery(tmp_path)
    StoreWriter(tmp_path / "begun", {}, ("a",), (8, 8), teacher_sha256="", seed=0)
    with pytest.raises(InputError, match="expected a complete store"):
        write_gallery(tmp_path / "begun")
    assert not (tmp_path / "begun" / "gallery").exists()


def test_scores_are_those_of_this_set(tmp_path: Path) -> None:
    root = make_store(tmp_path)
    assert read_scores(root) == {}
    (root / "results.json").write_bytes(dump_json({"teacher_ap50": 0.5, "teacher_sha256": "f" * 64}))
    assert read_scores(root)["teacher_ap50"] == 0.5
    (root / "results.json").write_bytes(dump_json({"teacher_ap50": 0.5, "teacher_sha256": "e" * 64}))
    assert read_scores(root) == {}
    (root / "results.json").write_bytes(b"{")
    assert read_scores(root) == {}
