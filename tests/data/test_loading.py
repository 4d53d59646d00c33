"""What workers say of a damaged file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from detkd.data.datamodule import DetectionDataModule, folder_datamodule
from detkd.data.loading import Collating, Loader, Reporting
from detkd.errors import InputError
from detkd.evaluation.coco import detect


def one_damaged(folder: Path) -> Path:
    for number in range(4):
        Image.new("RGB", (40, 40), "grey").save(folder / f"{number}.jpg")
    content = (folder / "2.jpg").read_bytes()
    (folder / "2.jpg").write_bytes(content[: len(content) // 2])
    return folder


def datamodule(folder: Path, num_workers: int) -> DetectionDataModule:
    return folder_datamodule(
        folder, classes=("a",), image_size=(8, 8), resize="stretch", batch_size=2, num_workers=num_workers, proxy=True
    )


def alone(message: str) -> bool:
    return "2.jpg: expected an image that can be read" in message and "Traceback" not in message and "\n" not in message


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_named_in_one_line(tmp_path: Path, num_workers: int, tiny_detector: Any) -> None:
    made = datamodule(one_damaged(tmp_path), num_workers)
    with pytest.raises(InputError) as loaded:
        list(made.train_dataloader())
    assert alone(str(loaded.value))
    with pytest.raises(InputError) as detected:
        detect(tiny_detector(), made.train_set.dataset, batch_size=2, num_workers=num_workers)  # type: ignore[arg-type]
    assert alone(str(detected.value))


def test_other_errors_are_torch_s_own() -> None:
    class Broken:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        list(Loader(Reporting(Broken()), collate_fn=Collating(list)))


def test_lightning_trains_on_it_and_gives_it_a_sampler_of_its_own(tmp_path: Path) -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: Any, index: int) -> Tensor:
            value: Tensor = self.layer(torch.ones(1)).sum()
            return value

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    with pytest.raises(InputError) as met:
        trainer.fit(Module(), datamodule(one_damaged(tmp_path), 2))
    assert alone(str(met.value))

    from lightning.fabric.utilities.data import _update_dataloader  # what a strategy of several processes does

    sampler: DistributedSampler[Any] = DistributedSampler(Reporting(list(range(4))), 2, 0)
    again = _update_dataloader(datamodule(tmp_path, 0).train_dataloader(), sampler)
    assert type(again) is Loader
    assert isinstance(again, DataLoader)
    assert again.sampler is sampler
    assert isinstance(again.dataset, Reporting)
