from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from detkd.losses.decoupled import decoupled_l2
from detkd.runtime.build import build_loss
from detkd.runtime.run import config_dir

STUDENTS = ("none", "object", "background", "all", "decoupled")


def loss_of(row: str) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("distill", ["+experiment=scenes_student", f"+row=defeat_regions/{row}"]).loss


def test_the_sweep_is_over_the_five_students_and_seeds() -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("distill", ["+experiment=scenes_student", "+sweep=defeat_regions"], return_hydra_config=True)
    parameters = cfg.hydra.sweeper.params
    assert parameters["row"].split(",") == [f"defeat_regions/{name}" for name in STUDENTS]
    assert parameters["seed"] == "0,1,2"


@pytest.mark.parametrize("row", STUDENTS)
def test_a_row_wins_over_the_experiment_and_builds_its_terms(row: str) -> None:
    assert list(build_loss(loss_of(row)).terms) == (["detection"] if row == "none" else ["detection", "defeat_neck"])


@pytest.mark.parametrize(("row", "parts"), [("object", (4.0, 0.0)), ("background", (0.0, 16.0)), ("decoupled", (4.0, 16.0))])
def test_regions_have_the_weights_of_the_paper(row: str, parts: tuple[float, float]) -> None:
    term = instantiate({k: v for k, v in loss_of(row).defeat_neck.items() if k != "weight"})
    assert (term.object_weight, term.background_weight) == parts
    assert term.decoupled


def test_all_cells_alike_is_one_mean_over_all_elements() -> None:
    node = loss_of("all").defeat_neck
    assert node.object_weight == node.background_weight
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mask = torch.rand(2, 4, 4) > 0.7
    objects, background = decoupled_l2([student], [teacher], [mask], decoupled=node.decoupled)
    torch.testing.assert_close(objects + background, (student - teacher).square().mean() / 2)
