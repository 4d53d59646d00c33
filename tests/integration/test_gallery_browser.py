"""The gallery in headless Chromium: it draws, filters and shows one image from the address alone, and a class name stays a name."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from detkd.data.store import StoreWriter
from detkd.runtime.gallery import write_gallery
from detkd.structures import Target

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the gallery in (apt-get install chromium)"),
]
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--virtual-time-budget=5000", "--window-size=1000,800"),
)
NAMES = ("cat", "<script>document.title='broken'</script>", "dog")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 12 red, green and blue images; image i has a box of class i % 3 and a teacher score of (11 - i) / 11."""
    root = tmp_path_factory.mktemp("gallery") / "my set"
    writer = StoreWriter(root, {}, NAMES, (32, 32), teacher_sha256="t", seed=0)
    images = torch.zeros(12, 3, 32, 32, dtype=torch.uint8)
    for i in range(12):
        images[i, i % 3] = torch.randint(150, 256, (32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
    images[5] = images[2]
    targets = [Target(boxes=torch.tensor([[8.0, 8.0, 24.0, 24.0]]), labels=torch.tensor([i % 3])) for i in range(12)]
    records: list[dict[str, Any]] = [{"teacher_score": round((11 - i) / 11, 4), "accepted": i < 9} for i in range(12)]
    writer.write_shard(0, images, targets, records, {"iterations": [0, 50, 100], "loss": [9.0, 3.0, 1.0]})
    writer.finish(1)
    strip = root / "pictures" / "steps" / "000000" / "000004.png"
    strip.parent.mkdir(parents=True)
    Image.new("RGB", (96, 32), "grey").save(strip)
    return write_gallery(root)


def browse(page: Path, address: str, tmp_path: Path, *extra: str) -> str:
    """Open the page and give its DOM back; fails where the console says anything."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            *QUIET,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            *extra,
            page.as_uri() + address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def cards(dom: str) -> list[int]:
    return [int(number) for number in re.findall(r'<span class="number">(\d+)</span>', dom)]


def test_all_images_worst_first(gallery: Path, tmp_path: Path) -> None:
    dom = browse(gallery, "", tmp_path, "--dump-dom")
    assert 'data-ready="yes"' in dom
    assert "<title>my set · gallery</title>" in dom
    assert cards(dom) == list(range(11, -1, -1))
    assert 'src="../shards/000000/000011.png"' in dom
    assert "12 images</span>" in dom
    assert "≈ 2</span>" in dom  # image 5 repeats image 2
    # the class name is text, in the grid and in the list of classes
    assert dom.count("&lt;script&gt;document.title='broken'&lt;/script&gt;</span>") == 4
    assert dom.count("<script") == 2


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("#class=dog", [11, 8, 5, 2]),
        ("#show=rejected&order=set", [9, 10, 11]),
        ("#show=duplicate", [5]),
        ("#show=unique&class=dog", [11, 8, 2]),
        ("#show=steps", [4]),
        ("#in.teacher_score=..0.2", [11, 10, 9]),
        ("#in.teacher_score=0.9..&order=best", [0, 1]),
        ("#class=nothing&show=nonsense&in.loss=1..2&size=xxl&image=99", list(range(11, -1, -1))),
    ],
)
def test_the_address_filters_and_sorts(address: str, shown: list[int], gallery: Path, tmp_path: Path) -> None:
    assert cards(browse(gallery, address, tmp_path, "--dump-dom")) == shown


def test_one_image_with_all_that_is_known(gallery: Path, tmp_path: Path) -> None:
    dom = browse(gallery, "#image=4", tmp_path, "--dump-dom")
    dialog = dom[dom.index("<dialog") : dom.index("</dialog>")]
    assert " open" in dialog[: dialog.index(">")]
    assert ">Image 4<" in dialog
    assert ">8 of 12<" in dialog
    assert 'src="../pictures/steps/000000/000004.png"' in dialog
    assert "Loss of its batch: 9 → 1 in 100 iterations" in dialog
    assert ">0.6364<" in dialog
    assert ">shards/000000/000004.png<" in dialog
    assert "A near-duplicate of" in browse(gallery, "#image=5", tmp_path, "--dump-dom")


def test_images_are_drawn(gallery: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    browse(gallery, "#class=cat&boxes=off&size=l", tmp_path, f"--screenshot={shot}")
    with Image.open(shot) as image:
        red = sum(count for count, (r, g, b) in image.convert("RGB").getcolors(1 << 24) or () if r > 140 and g < 40 and b < 40)
    assert red > 50_000  # two rows of red images; none of the page's own colours is like that


def test_without_its_data_the_page_says_so(gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(gallery, tmp_path / "alone" / "index.html")
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            *QUIET,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "alone" / "index.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "gallery.js is missing or damaged" in done.stdout
