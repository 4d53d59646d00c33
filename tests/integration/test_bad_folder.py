"""What a run finds in its folder, and what the disk does to it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
Files = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def copied(images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "set"))


def test_a_damaged_shard_is_found_and_made_again(
    command: Command, tiny: list[str], copied: Path, tmp_path: Path, images: Path
) -> None:
    damaged = copied / "shards" / "000000" / "000002.png"
    content = bytearray(damaged.read_bytes())
    content[-20] ^= 1
    damaged.write_bytes(bytes(content))
    done = command("invert", *tiny, "out=set", cwd=tmp_path).ok()
    assert re.search(r"shard 0 is damaged and is made again: .*000002\.png: expected sha256", done.stdout)
    assert damaged.read_bytes() == (images / "shards" / "000000" / "000002.png").read_bytes()
    assert (copied / "manifest.json").read_bytes() == (images / "manifest.json").read_bytes()


FULL_DISK = """
import errno, pathlib
write, left = pathlib.Path.write_bytes, {left}
def write_bytes(path, content):
    global left
    if path.suffix == ".png":
        left -= 1
    if left < 0:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    return write(path, content)
pathlib.Path.write_bytes = write_bytes
"""


@pytest.mark.parametrize("left", [0, 5])
def test_a_full_disk_stops_with_a_message_and_leaves_whole_shards(
    left: int, command: Command, tiny: list[str], tmp_path: Path, images: Path, files_of: Files
) -> None:
    message = command("invert", *tiny, "out=set", cwd=tmp_path, before=FULL_DISK.format(left=left)).error()
    assert "the disk is full" in message
    assert "the same command goes on" in message
    assert sorted(p.name for p in (tmp_path / "set" / "shards").glob("*")) == (["000000"] if left else [])
    assert not list((tmp_path / "set").rglob("*.tmp"))
    command("invert", *tiny, "out=set", cwd=tmp_path).ok()
    assert files_of(tmp_path / "set" / "shards") == files_of(images / "shards")


def test_a_changed_command_on_the_same_folder_shows_the_keys_that_differ(
    command: Command, tiny: list[str], copied: Path, tmp_path: Path, files_of: Files
) -> None:
    before = files_of(copied)
    message = command(
        "invert", *tiny, "loss.tv.weight=3", "sampling=false_positives", "sampling.every=1", "out=set", cwd=tmp_path
    ).error()
    assert re.search(r"recipe\.loss\.tv\.weight: [0-9.]+ there, 3 here", message)
    assert "recipe.sampling" in message
    assert files_of(copied) == before


def test_processes_that_others_start_must_be_told_the_folder(command: Command, tiny: list[str], tmp_path: Path) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    message = command("invert", *tiny, cwd=tmp_path, env=environment).error()
    assert "out: expected a folder that all processes share, like out=DIR" in message
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("arguments", [("invert", "seed=0"), ("distill", "-m", "seed=0,1"), ("evaluate", "data.root=set")])
def test_a_folder_that_cannot_be_made_is_named(arguments: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = command(*arguments, "out=file/sub", cwd=tmp_path).error()
    assert "out=file/sub: expected a folder that can be made or written, found that it cannot (Not a directory)" in message


@pytest.mark.parametrize("arguments", [("report", "runs=runs"), ("table", "runs=runs", "row_key=seed", "column_key=seed")])
def test_a_file_in_the_place_of_the_output_is_named(arguments: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "results.json").write_text('{"ap50": 0.5}')
    (tmp_path / "file").write_text("")
    message = command(*arguments, "out=file/sub", cwd=tmp_path).error()
    assert re.search(r"file/sub: expected a file or folder that can be read or written, found: Not a directory", message)
