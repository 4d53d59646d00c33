"""Where files are looked for, and what a download leaves behind."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from detkd.detectors.files import File, cache_dir, locate, read_names, read_text, shared_weights_dir
from detkd.disk import sha256_of
from detkd.errors import InputError

CONTENT = b"weights"
SHA = sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, cache and shared folder below tmp_path."""
    (tmp_path / "work").mkdir()
    (tmp_path / "shared" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("DETKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETKD_SHARED", str(tmp_path / "shared"))
    return tmp_path


def source(places: Path, content: bytes = CONTENT) -> str:
    (places / "remote.bin").write_bytes(content)
    return (places / "remote.bin").as_uri()


def test_looked_for_at_the_path_then_cache_then_shared_then_downloaded(places: Path) -> None:
    file = File("a.bin", source(places), SHA)
    downloaded = file.locate()
    assert downloaded == places / "cache" / "a.bin"
    assert downloaded.read_bytes() == CONTENT
    downloaded.unlink()
    (places / "shared" / "weights" / "a.bin").write_bytes(b"shared")
    assert file.locate() == places / "shared" / "weights" / "a.bin"
    downloaded.write_bytes(b"cache")
    assert file.locate() == downloaded
    (places / "work" / "a.bin").write_bytes(b"given")
    assert file.locate().read_bytes() == b"given"


def test_an_absolute_path_is_looked_for_nowhere_else(places: Path) -> None:
    (places / "shared" / "weights" / "a.bin").write_bytes(b"shared")
    with pytest.raises(InputError, match=r"elsewhere/a.bin: expected a file, found none"):
        locate(places / "elsewhere" / "a.bin")


def test_home_is_expanded(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(places))
    (places / "a.bin").write_bytes(CONTENT)
    assert locate("~/a.bin") == places / "a.bin"


def test_without_a_url_the_places_are_named(places: Path) -> None:
    with pytest.raises(InputError) as error:
        locate("a.bin")
    assert str(places / "cache" / "a.bin") in str(error.value)
    assert str(places / "shared" / "weights" / "a.bin") in str(error.value)


def test_another_content_is_refused_and_not_kept(places: Path) -> None:
    with pytest.raises(InputError, match=f"expected content with sha256 {SHA}, found .*nothing was kept"):
        File("a.bin", source(places, b"other"), SHA).locate()
    assert list((places / "cache").iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.bin", "http://host.invalid/a.bin"])
def test_without_network_the_message_says_which_file_to_put_where(places: Path, url: str) -> None:
    with pytest.raises(InputError) as error:
        File("a.bin", url).locate()
    assert f"download {url} yourself and put it at {places / 'cache' / 'a.bin'}" in str(error.value)
    assert list((places / "cache").iterdir()) == []


def test_a_missing_file_behind_a_url(places: Path) -> None:
    with pytest.raises(InputError, match="the download failed"):
        File("a.bin", (places / "nothing").as_uri()).locate()


def test_other_schemes_are_refused() -> None:
    with pytest.raises(InputError, match=r"a.bin: expected an http\(s\) URL, got 'ftp://x/a.bin'"):
        File("a.bin", "ftp://x/a.bin").locate()


def test_a_cache_that_cannot_be_made(places: Path) -> None:
    (places / "cache").write_text("a file in its place")
    with pytest.raises(InputError, match=r"a.bin: found in none of .*cache is not writable"):
        File("a.bin", source(places), SHA).locate()


def test_cache_dir_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DETKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "detkd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "detkd"
    monkeypatch.delenv("DETKD_SHARED")
    assert shared_weights_dir() == Path("../shared/weights")


def test_names(places: Path) -> None:
    path = places / "a.names"
    path.write_text("person\n\n tvmonitor \nmotorbike\n")
    assert read_names(path) == ("person", "tv", "motorcycle")
    path.write_text("\n\n")
    with pytest.raises(InputError, match=r"a.names: expected a class name a line, found none"):
        read_names(path)


def test_text_that_is_none(places: Path) -> None:
    path = places / "a.cfg"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a.cfg: expected a text file, found binary data"):
        read_text(path)
    with pytest.raises(InputError, match=r"b.cfg: expected a readable text file, found No such file"):
        read_text(places / "b.cfg")


def test_sha256(places: Path) -> None:
    source(places)
    assert sha256_of(places / "remote.bin") == SHA
