"""python -m detkd.scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Command = Callable[..., Any]


@pytest.mark.parametrize(("given", "size"), [("64", (64, 64)), ("[32,48]", (48, 32))])
def test_a_side_or_both(command: Command, tmp_path: Path, given: str, size: tuple[int, int]) -> None:
    command("scenes", "images=1", f"image_size={given}", "out=set", cwd=tmp_path).ok()
    with Image.open(tmp_path / "set/images/000000.png") as image:
        assert image.size == size  # (width, height)


@pytest.mark.parametrize("argument", ["image_size=[64,wide]", "image_size=large", "image_size=null", "images=2.5", "seed=true"])
def test_what_is_no_number_is_named(command: Command, tmp_path: Path, argument: str) -> None:
    key = argument.split("=")[0]
    message = command("scenes", argument, "out=set", cwd=tmp_path).error()
    assert message.startswith(f"error: {key}: expected whole numbers, got ")
    assert not (tmp_path / "set").exists()
