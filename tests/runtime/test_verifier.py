from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch

from detkd.errors import InputError
from detkd.inversion.augment import Compose
from detkd.inversion.image import PixelsFactory
from detkd.inversion.layout import UniformBoxes
from detkd.inversion.module import InversionModule
from detkd.inversion.stage import Stage
from detkd.losses.composite import Composite
from detkd.losses.detection import DetectionLoss
from detkd.runtime.verifier import VerifierCallback


def run(doubles: Any, verifier: Any, every: int = 2) -> list[float]:
    torch.manual_seed(0)
    teacher = doubles.TinyDetector(("a", "b"), image_size=(32, 32))
    stage = Stage((32, 32), 5, lambda p: torch.optim.Adam(p, lr=0.05))
    loss = Composite({"detection": DetectionLoss()}, {"detection": 1.0})
    module = InversionModule(teacher, PixelsFactory(), loss, UniformBoxes(), Compose([]), [stage], n_images=3, batch_size=2)
    seen: list[float] = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            value = trainer.callback_metrics.get("verifier/ap50")
            if outputs["work"] is not None and (outputs["work"].iteration + 1) % every == 0:
                seen.append(float(value))

    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    lightning.Trainer(accelerator="cpu", max_epochs=1, callbacks=[VerifierCallback(verifier, every), Watch()], **quiet).fit(
        module
    )
    return seen


def test_looks_on_at_intervals_and_leaves_its_mode(doubles: Any) -> None:
    torch.manual_seed(1)
    verifier = doubles.TinyDetector(("b", "c", "a"), image_size=(32, 32), score_threshold=0.0).train()
    scores = run(doubles, verifier)
    assert len(scores) == 2 * 2  # two batches, iterations 2 and 4
    assert all(0 <= score <= 1 for score in scores)
    assert verifier.training


def test_must_know_the_classes(doubles: Any) -> None:
    with pytest.raises(InputError, match=r"verifier: .*without \['b'\]"):
        run(doubles, doubles.TinyDetector(("a", "c"), image_size=(32, 32)))
