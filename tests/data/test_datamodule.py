"""Loaders: batches, hold-out, sizes."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from detkd.data.datamodule import Batch, DetectionDataModule, collate, folder_datamodule, split
from detkd.data.formats import open_dataset
from detkd.data.store import StoreWriter
from detkd.errors import InputError
from detkd.structures import Target


class Numbers(Dataset[Any]):
    """Image i has the value i everywhere, i % 3 boxes and the id i."""

    def __init__(self, n: int, labelled: bool = True) -> None:
        self.n = n
        self.labelled = labelled

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        target = Target(boxes=torch.ones(index % 3, 4), labels=torch.zeros(index % 3, dtype=torch.int64))
        image = torch.full((3, 8, 8), index, dtype=torch.uint8)
        return {"image": image, "target": target if self.labelled else None, "image_id": index, "more": "not batched"}


def ids(loader: Any) -> list[list[int]]:
    return [batch.image_ids for batch in loader]


def test_collate() -> None:
    data = Numbers(4)
    batch = collate([data[i] for i in range(4)])
    assert batch.images.shape == (4, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.image_ids == [0, 1, 2, 3]
    assert batch.targets is not None
    assert [len(t["labels"]) for t in batch.targets] == [0, 1, 2, 0]
    assert collate([Numbers(2, labelled=False)[i] for i in range(2)]).targets is None
    with pytest.raises(ValueError, match="1 of 2 without"):
        collate([data[0], Numbers(1, labelled=False)[0]])


def test_split_is_deterministic_and_disjoint() -> None:
    kept, held = split(20, 0.25, seed=3)
    assert len(held) == 5
    assert sorted(kept + held) == list(range(20))
    assert split(20, 0.25, seed=3) == (kept, held)
    assert split(20, 0.25, seed=4)[1] != held
    assert split(20, 0.0, seed=3) == (list(range(20)), [])
    assert len(split(3, 0.01, seed=0)[1]) == 1
    for fraction in (-0.1, 1.0):
        with pytest.raises(InputError, match="holdout"):
            split(5, fraction, 0)
    with pytest.raises(InputError, match="left to train on"):
        split(1, 0.5, 0)


def test_training_batches_are_full_shuffled_and_seeded() -> None:
    loaders = [DetectionDataModule(Numbers(10), batch_size=4, seed=s).train_dataloader() for s in (0, 0, 1)]
    first = ids(loaders[0])
    assert [len(b) for b in first] == [4, 4]
    assert first == ids(loaders[1])
    assert first != ids(loaders[2])
    assert first != ids(loaders[0])  # another order in the next epoch


def test_held_out_images_are_never_trained_on() -> None:
    data = DetectionDataModule(Numbers(10), batch_size=3, holdout=0.2, length=20)
    held = {i for b in ids(data.val_dataloader()) for i in b}
    trained = [i for b in ids(data.train_dataloader()) for i in b]
    assert len(held) == 2
    assert len(data.train_set) == 20
    assert held.isdisjoint(trained)
    assert held | set(trained) == set(range(10))


def test_val_set_comes_before_the_held_out_part() -> None:
    data = DetectionDataModule(Numbers(10), Numbers(3), batch_size=2, holdout=0.5)
    assert ids(data.val_dataloader()) == [[0, 1], [2]]
    assert len(data.train_set) == 5
    assert DetectionDataModule(Numbers(10), batch_size=2).val_dataloader() == []


def test_batch_larger_than_the_set_shrinks_with_a_warning() -> None:
    data = DetectionDataModule(Numbers(5), batch_size=64)
    with pytest.warns(UserWarning, match="batch_size=64: a process has 5 images"):
        loader = data.train_dataloader()
    assert [len(b) for b in ids(loader)] == [5]
    with pytest.raises(InputError, match="batch_size"):
        DetectionDataModule(Numbers(5), batch_size=0)


def test_workers_give_the_same_batches() -> None:
    alone = DetectionDataModule(Numbers(8), batch_size=4)
    helped = DetectionDataModule(Numbers(8), batch_size=4, num_workers=1)
    assert ids(alone.train_dataloader()) == ids(helped.train_dataloader())


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.trained: list[int] = []
        self.validated: list[int] = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.trained += batch.image_ids
        assert batch.targets is not None
        return self.weight * batch.images.float().mean()

    def validation_step(self, batch: Batch, _: int) -> None:
        self.validated += batch.image_ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_in_a_trainer(holdout: float, tmp_path: Path) -> None:
    module = Recorder()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module, datamodule=DetectionDataModule(Numbers(8), batch_size=2, holdout=holdout))
    held = round(8 * holdout)
    assert len(module.trained) == 2 * (8 - held)
    assert len(module.validated) == 2 * held
    assert set(module.trained).isdisjoint(module.validated)


def test_folders(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", {}, ("cat", "dog"), (32, 32), teacher_sha256="t", seed=0)
    target = Target(boxes=torch.tensor([[1.0, 2.0, 9.0, 9.0]]), labels=torch.tensor([1]))
    writer.write_shard(0, torch.zeros(4, 3, 32, 32, dtype=torch.uint8), [target] * 4)
    writer.finish(1)
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "plain" / "a.png")
    options: dict[str, Any] = {"classes": ("dog", "cat"), "image_size": (16, 16), "resize": "stretch", "batch_size": 2}
    val = open_dataset(tmp_path / "plain", image_size=(16, 16), resize="stretch")
    data = folder_datamodule(tmp_path / "store", val=val, **options)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (2, 3, 16, 16)
    assert [t["labels"].tolist() for t in batch.targets] == [[0], [0]]
    assert batch.targets[0]["boxes"].tolist() == [[0.5, 1.0, 4.5, 4.5]]
    assert next(iter(data.val_dataloader())).targets is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = folder_datamodule(tmp_path / "store", annotations="instances.json", **options)
    assert len(named.train_set) == 4
    assert named.val_set is None
