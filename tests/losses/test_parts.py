from __future__ import annotations

import torch

from detkd.losses.parts import weighted_parts


def test_weights_and_parts_of_weight_0() -> None:
    nan = torch.tensor(float("nan"))
    found = weighted_parts({"a": (2.0, torch.tensor(3.0, dtype=torch.float64)), "b": (0.0, nan), "c": (0.5, torch.tensor(1.0))})
    assert {name: part.item() for name, part in found.items()} == {"a": 6.0, "c": 0.5}
    assert all(part.dtype == torch.float32 for part in found.values())
    assert weighted_parts({}) == {}
