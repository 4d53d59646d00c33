from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detkd.errors import InputError
from detkd.losses.step import Step
from detkd.losses.tv import CHUNK, DIRECTIONS, TotalVariation, total_variation


def grey(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).expand(1, 3, -1, -1)


def test_two_by_two_by_hand() -> None:
    # right |2-1|, |7-4|: 2; down |4-1|, |7-2|: 4; diagonal |7-1|: 6; other diagonal |4-2|: 2
    assert total_variation(grey([[1, 2], [4, 7]])).item() == pytest.approx(2 + 4 + 6 + 2)


def test_three_by_three_by_hand() -> None:
    # a single 1 in the middle: in each direction 2 of the pairs differ by 1, of 6, 6, 4 and 4
    assert total_variation(grey([[0, 0, 0], [0, 1, 0], [0, 0, 0]])).item() == pytest.approx(2 / 6 + 2 / 6 + 2 / 4 + 2 / 4)


def test_zero_for_a_flat_image_and_linear_in_contrast() -> None:
    assert total_variation(torch.full((2, 3, 5, 4), 0.3)).item() == 0
    image = torch.rand(2, 3, 6, 5, dtype=torch.float64)
    assert total_variation(3 * image + 1).item() == pytest.approx(3 * total_variation(image).item(), rel=1e-5)


def test_gradient_in_double() -> None:
    # away from ties the value is linear, so a directional derivative is exact
    image = torch.rand(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(total_variation(image), image)
    assert (gradient * image).sum().item() == pytest.approx(total_variation(image).item(), rel=1e-5)  # homogeneous of degree 1


def test_an_image_one_pixel_wide_has_one_direction_and_one_pixel_none() -> None:
    row = torch.rand(1, 3, 1, 5)
    assert total_variation(row).item() == pytest.approx(row.diff(dim=3).abs().mean().item())
    assert total_variation(row.transpose(2, 3)).item() == pytest.approx(row.diff(dim=3).abs().mean().item())
    assert total_variation(row[..., :1]).item() == 0


def test_batch_is_the_mean_of_its_images() -> None:
    images = torch.rand(3, 3, 7, 7)
    assert total_variation(images).item() == pytest.approx(sum(total_variation(i[None]).item() for i in images) / 3, rel=1e-5)


@pytest.mark.parametrize(("side", "at_a_time"), [(300, 1), (160, 3), (130, 5)])
def test_fewer_images_at_a_time_than_there_are(side: int, at_a_time: int) -> None:
    images = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert max(1, min(5, CHUNK // (3 * side * side))) == at_a_time
    plain = sum((images[there] - images[here]).abs().mean() for here, there in DIRECTIONS)
    assert isinstance(plain, Tensor)
    torch.testing.assert_close(total_variation(images), plain)
    ours, theirs = (torch.autograd.grad(3.5 * value, images)[0] for value in (total_variation(images), plain))
    torch.testing.assert_close(ours, theirs)


def test_half_precision_counts_in_float32() -> None:
    assert total_variation(torch.rand(1, 3, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_term_looks_at_augmented_or_clean_images() -> None:
    augmented, clean = torch.rand(2, 2, 3, 4, 4)
    step = Step(augmented, clean_images=clean)
    assert TotalVariation()(step) == {"tv": total_variation(augmented)}
    assert TotalVariation("clean")(step) == {"tv": total_variation(clean)}
    assert TotalVariation("clean")(Step(augmented)) == {"tv": total_variation(augmented)}
    with pytest.raises(InputError, match=r"tv\.of.*'augmented' or 'clean', got 'both'"):
        TotalVariation("both")
