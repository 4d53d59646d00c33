"""How fast one and two processes fill a set, and whether their memory stays flat.

    python benchmarks/factory.py [--out FILE] [--pairs 3] [--batches 20]

Runs `python -m detkd.invert` on the built-in teacher with one thread a process, once with one process and once with two, in pairs one after
the other. Images a second are counted from the time at which every process has written its first batch to the last batch that was written while
all were at work, so that the start of Python is left out. Memory is the resident set of each process, read when a batch appears on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

BATCH = 8


def run(processes: int, batches: int, iterations: int, folder: Path) -> dict[str, Any]:
    """Fill one set, watching from outside."""
    command = [
        sys.executable,
        "-m",
        "detkd.invert",
        f"n_images={BATCH * batches}",
        f"batch_size={BATCH}",
        f"iterations={iterations}",
    ]
    command += [
        "seed=5",
        f"trainer.devices={processes}",
        "trainer.accelerator=cpu",
        "callbacks=none",
        "logger=none",
        f"out={folder}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    memory: dict[int, list[int]] = {}
    seen = 0
    while process.poll() is None:
        shards = len(list((folder / "shards").glob("[0-9]*"))) if (folder / "shards").is_dir() else 0
        if shards > seen:
            seen = shards
            for pid in (process.pid, *children(process.pid)):
                memory.setdefault(pid, []).append(resident_mib(pid))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(process.stderr.read() if process.stderr else "the run failed")
    written = sorted(path.stat().st_mtime for path in (folder / "shards").glob("[0-9]*/shard.json"))
    first, last = written[processes - 1], written[-processes]
    counted = sum(first < t <= last for t in written)
    grown = {pid: values for pid, values in memory.items() if len(values) > 4}
    return {
        "processes": processes,
        "images_per_second": counted * BATCH / (last - first),
        "memory_mib": [{"after_3_batches": v[2], "at_the_end": v[-1]} for v in grown.values()],
    }


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in path.read_text().split()] if path.exists() else []


def resident_mib(pid: int) -> int:
    """Resident memory; 0 where the process is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="json to write")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=100)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="factory"))
    pairs = []
    try:
        for number in range(options.pairs):
            one = run(1, options.batches, options.iterations, folder / f"{number}-1")
            two = run(2, options.batches, options.iterations, folder / f"{number}-2")
            pairs.append({"one": one, "two": two, "ratio": two["images_per_second"] / one["images_per_second"]})
            print(json.dumps(pairs[-1]), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {
        "command": "python benchmarks/factory.py " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, one thread a process",
        "torch": torch.__version__,
        "ratio_median": statistics.median(pair["ratio"] for pair in pairs),
        "pairs": pairs,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "pairs"}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
