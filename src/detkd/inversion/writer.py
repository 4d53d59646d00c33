"""Batches that go into a store: shared by any number of processes, written beside the optimisation."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from detkd.data.store import StoreWriter, shard_claim
from detkd.inversion.batches import Finished
from detkd.structures import Target


class StoreBatches:
    """The batches of a store that are not there yet.

    Processes agree through claims on the folder alone, so that it does not matter whether Lightning started them, several machines
    did, or the same command was typed twice; what a process leaves when it dies is taken up by the others, or by the next run.

    Args:
        writer: of the store. n_batches: all of them.
        first: batches below this are finished before any other is begun (the bank of a warm start).
        turn: which of ``turns`` processes this is: where it begins, so that processes seldom ask for the same batch.
        written: told the index of each batch once it is on disk.
        wait: seconds between looks while others are at work.
    """

    def __init__(
        self,
        writer: StoreWriter,
        n_batches: int,
        first: int = 0,
        turn: int = 0,
        turns: int = 1,
        written: Callable[[int], None] | None = None,
        wait: float = 0.2,
    ) -> None:
        self.writer, self.n_batches, self.first = writer, n_batches, first
        self.turn, self.turns, self.written, self.wait = turn, max(1, turns), written, wait
        writer.claims.take(f"run-{uuid.uuid4().hex}")  # here is somebody: the folder is not to be given up, nor swept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writing: Future[None] | None = None

    def claim(self) -> int | None:
        """A batch that is neither written nor being made; None when all are written. Raises what writing raised."""
        while True:
            self.settle(wait=False)
            missing = self.missing()
            if not missing:
                self.settle()
                return None
            bank = [i for i in missing if i < self.first]
            for index in self._in_turn(bank or missing):
                if self.writer.claims.take(shard_claim(index)):
                    self.settle(wait=False)  # or a batch that could not be written would be made once more
                    if index in self.writer.finished():  # by another, between the look and the claim
                        self.writer.claims.release(shard_claim(index))
                        continue
                    if self.writer.claims.shared:
                        for leftover in (self.writer.root / "shards").glob(f".{index:06d}.*.tmp"):
                            shutil.rmtree(leftover, ignore_errors=True)
                    return index
            time.sleep(self.wait)

    def missing(self) -> list[int]:
        """Batches that are not written."""
        finished = self.writer.finished()
        return [i for i in range(self.n_batches) if i not in finished]

    def deliver(self, finished: Finished) -> None:
        """Write a batch in the background, once the one before is written."""
        self.settle()
        self._writing = self._thread.submit(self._write, finished)

    def read(self, index: int) -> tuple[Tensor, list[Target]]:
        """Images (B, 3, H, W) uint8 and targets of a batch that is written."""
        shard = self.writer.read_shard(index)
        return shard.images, shard.targets

    def settle(self, wait: bool = True) -> None:
        """Raise what went wrong in writing; with ``wait`` also let it end."""
        if self._writing is not None and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Let what is being written end, and give all claims up; raises nothing: :meth:`settle` does."""
        self._thread.shutdown(wait=True)
        self.writer.claims.close()

    def _write(self, finished: Finished) -> None:
        try:
            self.writer.write_shard(finished.index, finished.images, finished.targets, finished.records, finished.trace)
        finally:
            self.writer.claims.release(shard_claim(finished.index))
        if self.written is not None:
            self.written(finished.index)

    def _in_turn(self, missing: Iterable[int]) -> list[int]:
        mine = [i for i in missing if i % self.turns == self.turn % self.turns]
        return mine + [i for i in missing if i % self.turns != self.turn % self.turns]
