"""The report in headless Chromium, driven through its debugging pipe: nothing is fetched, tables sort by keyboard, narrow screens do."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from detkd.data.store import StoreWriter
from detkd.runtime.gallery import write_gallery
from detkd.runtime.report.build import make_report
from detkd.runtime.report.write import write_report
from detkd.structures import Target

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the report in (apt-get install chromium)"),
]
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")
NAMES = ("cat", "<script>alert(1)</script>", 'a "quoted" & <b>bold</b> näme')
# Chromium reads commands from descriptor 3 and answers on 4.
ON_3_AND_4 = """
import os, sys
os.dup2(int(sys.argv[1]), 103); os.dup2(int(sys.argv[2]), 104); os.dup2(103, 3); os.dup2(104, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
LONG = "a-name-without-any-place-to-break-it-" * 4


class Tab:
    """A page of a browser of its own. events: all that it reported."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        assert BROWSER is not None
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-S",
                "-c",
                ON_3_AND_4,
                str(to_browser),
                str(from_browser),
                BROWSER,
                *QUIET,
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.events: list[dict[str, Any]] = []
        self._number, self._rest, self._session = 0, b"", None
        pages = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.send("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser ended"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def open(self, address: str) -> None:
        start = len(self.events)
        self.send("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events[start:]):
            self.events.append(self._next())

    def ask(self, script: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def resize(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def shoot(self, path: Path, whole: bool = False) -> Path:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))
        return path

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self._write)
        os.close(self._read)


def write_run(folder: Path, config: dict[str, Any], results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a set, a student of it, three evaluations and a run with a picture, in folders with hostile names."""
    root = tmp_path_factory.mktemp("report") / "runs 'a' & <b>ü</b>"
    writer = StoreWriter(root / "set", {}, NAMES, (32, 32), teacher_sha256="a" * 64, seed=0)
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = [Target(boxes=torch.tensor([[8.0, 8.0, 24.0, 24.0]]), labels=torch.tensor([i % 3])) for i in range(12)]
    writer.write_shard(0, images, targets, [{"accepted": True} for _ in range(12)])
    writer.finish(1)
    write_gallery(root / "set")
    write_run(
        root / "set", {"stages": [], "teacher": {"path": LONG}}, {"teacher_ap50": 0.5, "images": 12, "teacher_sha256": "a" * 64}
    )
    student = {"teacher": {"path": LONG}, "student": {"_target_": "x"}, "data": {"root": str(root / "set")}}
    write_run(root / "student", student, {"ap50": None, "student_sha256": "b" * 64, "teacher_sha256": "a" * 64})
    rows = "".join(f"{i},{i * 10 + 9},{1 / (i + 1)},{0.5 / (i + 1)}\n" for i in range(40))
    (root / "student" / "metrics.csv").write_text("epoch,step,train/loss,train/mimic\n" + rows)
    for number, score in enumerate((0.25, 0.75, 0.5)):
        per_class = dict.fromkeys(NAMES, score)
        scores = {"ap": score / 2, "ap50": score, "images": 3, "scored_sha256": "c" * 64, "detector_sha256": "b" * 64}
        write_run(
            root / f"scores {number}", {"teacher": {"path": "x"}, "data": {"root": "d"}}, scores | {"per_class": per_class}
        )
    write_run(root / LONG, {"what": {"deep": {"deeper": [1, 2, LONG]}}}, {"value": 1.5, "text": LONG})
    Image.new("RGB", (1600, 400), "white").save(root / LONG / "figure.png")
    report = make_report([root], title="</title><script>alert(1)</script>")
    assert not report.problems
    return write_report(report, root.parent / "out <i>")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    tab = Tab(tmp_path_factory.mktemp("browser"))
    yield tab
    tab.close()


@pytest.fixture
def tab(browser: Tab) -> Tab:
    """The one tab, as if it was new."""
    browser.send("Emulation.clearDeviceMetricsOverride")
    browser.open("about:blank")
    browser.events.clear()
    return browser


def quiet(tab: Tab) -> None:
    """Fail where the page asked for anything but files and its own data, said something in the console, or opened a dialog."""
    asked = [e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert [url[:60] for url in asked if not url.startswith(("file://", "data:"))] == []
    loud = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening")
    assert [event for event in tab.events if event["method"] in loud] == []


def test_it_opens_from_disk_alone_and_without_a_word(page: Path, tab: Tab) -> None:
    assert page.stat().st_size < 10_000_000
    tab.open(page.as_uri())
    quiet(tab)
    assert tab.ask("document.title") == "</title><script>alert(1)</script>"
    assert tab.ask("document.querySelectorAll('script').length") == 1
    assert tab.ask("document.querySelectorAll('b').length") == 0
    # all pictures are drawn, and the names of classes are text
    assert tab.ask("[...document.images].every((image) => image.naturalWidth > 0)")
    assert tab.ask("document.querySelectorAll('.thumb image').length") == 12
    assert NAMES[1] in tab.ask("[...document.querySelectorAll('.thumb text')].map((text) => text.textContent)")
    links = tab.ask("[...document.querySelectorAll('.run a[href]')].map((a) => a.href)")
    assert any(link.endswith("/set/gallery/index.html") for link in links)
    for link in links:
        assert Path(url2pathname(urlsplit(link).path)).exists(), link


def test_a_table_sorts_by_keyboard(page: Path, tab: Tab) -> None:
    tab.open(page.as_uri())
    column = "[...table.tBodies[0].rows].map((row) => row.cells[head.cellIndex].textContent)"
    script = (
        "(() => {{ const table = document.querySelector('#scores table');"
        "const head = [...table.tHead.rows[0].cells].find((cell) => cell.textContent.trim() === 'ap50'); {0} }})()"
    )
    assert tab.ask(script.format(f"return {column}")) == ["0.250", "0.750", "0.500"]
    tab.ask("document.querySelector('#theme').focus()")
    for _ in range(200):  # from the switch by tab to the head of the column
        tab.press("Tab", 9)
        if tab.ask("document.activeElement.closest('#scores th')?.textContent.trim()") == "ap50":
            break
    else:
        pytest.fail("the head of the column cannot be reached by keyboard")
    tab.press("Enter", 13, "\r")
    assert tab.ask(script.format(f"return [head.ariaSort, {column}]")) == ["descending", ["0.750", "0.500", "0.250"]]
    assert tab.ask("document.getElementById('said').textContent") == "Sorted by ap50, descending"
    tab.press("Enter", 13, "\r")
    assert tab.ask(script.format(f"return [head.ariaSort, {column}]")) == ["ascending", ["0.250", "0.500", "0.750"]]
    quiet(tab)


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_no_width_scrolls_the_page_sideways(width: int, page: Path, tab: Tab) -> None:
    tab.resize(width, 700)
    tab.open(page.as_uri())
    tab.ask("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.ask("innerWidth") == width


def test_light_and_dark_by_the_system_and_by_the_switch(page: Path, tab: Tab) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        tab.prefer(scheme)
        tab.open(page.as_uri())
        found[scheme] = tab.ask(ground)
    assert found["light"] != found["dark"]
    choose = "(() => {{ const s = document.querySelector('#theme'); s.value = '{}'; s.dispatchEvent(new Event('change')); }})()"
    tab.ask(choose.format("light"))
    assert tab.ask(ground) == found["light"]
    tab.ask(choose.format(""))
    assert tab.ask(ground) == found["dark"]


def test_an_address_that_names_a_run_opens_it(page: Path, tab: Tab) -> None:
    tab.open(page.as_uri())
    assert tab.ask("[...document.querySelectorAll('details.run')].filter((run) => run.open).length") == 0  # more than four
    tab.open("about:blank")  # to another address of the same page there is no load to wait for
    tab.open(page.as_uri() + "#run-2")
    assert tab.ask("document.querySelector('#run-2').open")
