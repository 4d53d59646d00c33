from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from detkd.data.claims import Claims

HOLDER = """
import sys, time
from pathlib import Path
from detkd.data.claims import Claims
assert Claims(Path(sys.argv[1])).take("7")
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_claim_is_held_once_and_given_up(tmp_path: Path) -> None:
    mine, yours = Claims(tmp_path / "claims"), Claims(tmp_path / "claims")
    assert mine.take("1")
    assert not mine.take("1")
    assert not yours.take("1")
    assert yours.take("2")
    assert mine.others() == ["2"]
    mine.release("1")
    mine.release("1")  # nothing is held: nothing happens
    assert yours.take("1")
    mine.close()
    assert yours.others() == []
    yours.close()
    assert not (tmp_path / "claims").exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    process, claims = hold(tmp_path / "claims"), Claims(tmp_path / "claims")
    try:
        assert not claims.take("7")
        assert claims.others() == ["7"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "claims" / "7").exists()
    assert claims.take("7")
    claims.close()
    assert not (tmp_path / "claims").exists()


def test_what_a_dead_process_left_is_removed_at_the_end(tmp_path: Path) -> None:
    process = hold(tmp_path / "claims")
    process.kill()
    process.wait()
    Claims(tmp_path / "claims").close()
    assert not (tmp_path / "claims").exists()


def test_many_threads_never_hold_a_claim_together(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        claims = Claims(tmp_path / "claims")
        for _ in range(20):
            with claims.alone("x"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most == 1


HAMMER = """
import random, sys, time
from pathlib import Path
from detkd.data.claims import Claims
draw, claims, end = random.Random(sys.argv[2]), Claims(Path(sys.argv[1])), time.monotonic() + 3
while time.monotonic() < end:
    name = str(draw.randint(0, 3))
    if claims.take(name):
        claims.release(name)
    claims.others()
claims.close()
"""


def test_processes_that_come_and_go_do_not_disturb_each_other(tmp_path: Path) -> None:
    # the folder is made by who comes first and removed by who leaves last, thousands of times
    run = [sys.executable, "-c", HAMMER, str(tmp_path / "claims")]
    processes = [subprocess.Popen([*run, str(i)], stderr=subprocess.PIPE, text=True) for i in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert not (tmp_path / "claims").exists()


def test_without_locks_a_claim_is_granted_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr("detkd.data.claims.fcntl.flock", refuse)
    claims = Claims(tmp_path)
    with pytest.warns(UserWarning, match="no locks"):
        assert claims.take("1")
    assert not claims.shared
    assert not claims.take("1")
    claims.close()
    assert claims.take("1")
