"""A batch of images in work, and the steps that Lightning counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from detkd.boxes import clip_xyxy
from detkd.inversion.image import Image
from detkd.inversion.quality import Candidate
from detkd.inversion.stage import Stage, Work
from detkd.structures import Target


@dataclass
class Batch:
    """The batch in work: where it stands, its images, and the best of them so far.

    best: the images of lowest un-augmented loss since the targets last changed, (B, 3, H, W), and that loss (B,).
    """

    index: int
    stages: Sequence[Stage]
    attempt: int = 0
    stage: int = 0
    iteration: int = 0
    targets: list[Target] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None
    image: Image | None = None
    optimizer: Optimizer | None = None
    best: Tensor | None = None
    best_loss: Tensor | None = None
    candidates: list[Candidate] = field(default_factory=list)
    trace: list[tuple[int, float, Tensor | None]] = field(default_factory=list)

    def work(self) -> Work:
        """The step that is next."""
        return Work(self.index, self.attempt, self.stage, self.iteration)

    def note(self, loss: Tensor | None) -> None:
        """Put iterations done, mean objects an image and the loss into the trace."""
        iterations = self.iteration + sum(stage.iterations for stage in self.stages[: self.stage])
        self.trace.append((iterations, sum(len(t["labels"]) for t in self.targets) / len(self.targets), loss))

    def noted(self) -> dict[str, list[float | None]]:
        """The trace by column; here the device is waited for."""
        return {
            "iterations": [float(iteration) for iteration, _, _ in self.trace],
            "objects": [round(objects, 4) for _, objects, _ in self.trace],
            "loss": [None if loss is None else round(float(loss), 4) for _, _, loss in self.trace],
        }

    def rescale_targets(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Bring the boxes from images of one (height, width) to those of another."""
        factor = [after[1] / before[1], after[0] / before[0]] * 2
        self.targets = [
            {"boxes": clip_xyxy(t["boxes"] * t["boxes"].new_tensor(factor), after), "labels": t["labels"]} for t in self.targets
        ]


class Steps(IterableDataset[int]):
    """Numbers for Lightning's loop to count, until ``over``: what a step does is decided when it is taken.

    Lightning fetches one number ahead, so the last step finds nothing to do.
    """

    def __init__(self, over: Callable[[], bool]) -> None:
        self.over = over

    def __iter__(self) -> Iterator[int]:
        number = 0
        while not self.over():
            yield number
            number += 1
