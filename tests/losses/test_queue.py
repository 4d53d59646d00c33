from __future__ import annotations

import pytest
import torch

from detkd.losses.queue import FeatureQueue


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None].repeat(1, 2)


def held(queue: FeatureQueue) -> list[float]:
    return sorted(queue.read()[:, 0].tolist())


def test_the_oldest_leave_first_across_the_end_of_the_ring() -> None:
    queue = FeatureQueue(5, 2)
    assert queue.read().shape == (0, 2)
    seen: list[float] = []
    for part in ([1.0, 2, 3], [], [4.0, 5, 6], [7.0], [8.0, 9, 10, 11, 12], [13.0]):
        queue.put(rows(*part) if part else torch.zeros(0, 2))
        seen += part
        assert held(queue) == sorted(seen[-5:])
    assert queue.place == 3  # 2 of the first 7, then 5, then 1


def test_more_than_fits_leaves_the_last() -> None:
    queue = FeatureQueue(3, 2)
    queue.put(rows(1, 2))
    queue.put(rows(*range(3, 14)))
    assert held(queue) == [11, 12, 13]
    queue.put(rows(20))
    assert held(queue) == [12, 13, 20]


def test_what_is_put_in_has_no_gradient_and_the_type_of_the_queue() -> None:
    queue = FeatureQueue(4, 2)
    queue.put(torch.ones(2, 2, dtype=torch.float64, requires_grad=True))
    assert queue.read().dtype == torch.float32
    assert not queue.read().requires_grad
    assert list(queue.parameters()) == []


def test_the_state_dict_brings_it_back_and_it_goes_on() -> None:
    queue, again = FeatureQueue(5, 2), FeatureQueue(5, 2)
    queue.put(rows(1, 2, 3, 4, 5, 6, 7))
    again.load_state_dict(queue.state_dict())
    for one in (queue, again):
        one.put(rows(8, 9))
    assert (again.place, again.filled) == (queue.place, queue.filled) == (2, 5)
    assert torch.equal(again.rows, queue.rows)
    assert held(again) == [5, 6, 7, 8, 9]


def test_bad_sizes() -> None:
    for size, width in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="expected a queue of positive size and width"):
            FeatureQueue(size, width)
