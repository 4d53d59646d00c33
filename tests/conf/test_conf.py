from __future__ import annotations

import importlib.util
import itertools
import math
import re
import shlex
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from detkd.data.scenes import CLASSES
from detkd.detectors.protocol import Detector
from detkd.errors import InputError
from detkd.runtime import build
from detkd.runtime.run import config_dir
from detkd.runtime.sweep_table import WriteTable
from detkd.runtime.table_settings import check_settings

CONF = config_dir()
COMMANDS = {path.stem: path for path in sorted(CONF.glob("*.yaml"))}
GROUPS = sorted({p.parent.name for p in CONF.glob("*/*.yaml")})
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml"))
# which commands select from a group; an option that belongs to one of them only says so here
USED_BY = {
    "augmentation": {"invert": {"diode", "geometric", "none"}, "distill": {"train", "mosaic", "tile", "multi_scale", "none"}},
    "callbacks": {"invert": {"invert", "none"}, "distill": {"distill", "none"}},
    "data": {"distill": None, **{key: {"folder", "coco", "voc", "bdd100k"} for key in ("evaluate", "features", "export")}},
    "image": {"invert": None},
    "layout": {"invert": None},
    "logger": {"invert": None, "distill": None},
    "loss": {
        "invert": {"detection", "bn_stats", "tv", "small_copy", "pixel_l2"},
        "distill": {
            "detection",
            "mimic",
            "feature_l1",
            "feature_l2",
            "feature_smooth_l1",
            "ssim",
            "ms_ssim",
            "l1_ms_ssim",
            "pkd",
            "cwd",
            "mgd",
            "defeat_neck",
            "defeat_backbone",
            "defeat_proposals",
            "careg",
            "prediction",
            "sgfi",
            "defeat",
            "contrastive",
            "gdetkd",
            "crosskd",
            "transfer_head",
        },
    },
    "optimizer": {"distill": None},
    "sampling": {"invert": None},
    "student": {"distill": None, "export": None},
    "teacher": {"invert": None, "distill": None, "evaluate": None, "features": None},
    "trainer": {"invert": None, "distill": None},
    "warm_start": {"invert": None},
    "verifier": {"invert": None},
}
BUNDLES = {  # names for several terms
    "defeat": ["defeat_neck", "defeat_backbone", "defeat_proposals"],
    "gdetkd": ["sgfi", "contrastive", "prediction", "careg"],
}
ADDS_NO_LOSS = ["transfer_head"]  # alone it is an error
NO_FILE = ["scenes", "yolov3_tiny"]  # architectures built in code, quickly
HEAVY = [
    "yolov3",
    "yolov3_spp",
    *sorted(p.stem for p in (CONF / "detector").glob("*.yaml") if re.search("rcnn|fcos|retina|ssd", p.stem)),
]
EXTRA = ["yolo11n", "yolo11s", "yolov8n", "yolov8s"]  # of an optional package


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def choices(*groups: str) -> list[tuple[str, str, str]]:
    """(command, group, option) for all that can be chosen."""
    return [
        (command, group, option)
        for group in groups
        for command, only in USED_BY[group].items()
        for option in options(group)
        if only is None or option in only
    ]


def compose_command(command: str, *overrides: str, folder: Path = Path("/nowhere")) -> DictConfig:
    """The config of a command, with Hydra's own set as it is in a run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, list(overrides), return_hydra_config=True)
    OmegaConf.set_struct(cfg, False)
    cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)
    return cfg


@pytest.fixture(autouse=True)
def _hydra_config() -> Iterator[None]:
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


def plain(cfg: DictConfig) -> dict[str, Any]:
    """All of it but Hydra's own, resolved."""
    cfg = cfg.copy()
    del cfg["hydra"]
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(resolved, dict)
    return resolved


def test_every_group_is_used_by_a_command_and_every_option_can_be_chosen() -> None:
    assert set(GROUPS) == {*USED_BY, "detector", "experiment", "gpu", "hydra", "sweep", "world"}
    for group, commands in USED_BY.items():
        chosen = {option for _, g, option in choices(group) if g == group}
        assert chosen == set(options(group)), group
        assert set(commands) <= set(COMMANDS)


@pytest.mark.parametrize(("command", "group", "option"), choices(*sorted(USED_BY)))
def test_every_option_composes(command: str, group: str, option: str) -> None:
    cfg = compose_command(command, f"{group}=[{option}]" if group == "loss" else f"{group}={option}")
    resolved = plain(cfg)
    if option == "none":
        assert not resolved.get(group)
    else:
        assert resolved[group], group


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_composes_as_it_is(command: str) -> None:
    resolved = plain(compose_command(command))
    if command in ("gallery", "table"):
        assert resolved["out"] is None  # beside what it is about, no run
    elif command == "status":
        assert resolved["out"] == "???"  # a look at a set, no run
    else:
        assert resolved["out"].startswith(f"runs/{command}/")
    assert COMMANDS[command].read_text().startswith(f"# python -m detkd.{command}: ")


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_option_opens_with_a_line_that_explains_it(path: Path) -> None:
    assert re.match(r"# .{5,}", path.read_text().splitlines()[0])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_name_the_command_that_runs_them_and_compose(name: str) -> None:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"  # Hydra reads this in the first line alone
    match = re.fullmatch(r"# python -m detkd\.(\w+) (.+)", lines[1])
    assert match is not None, lines[1]
    first, *others = shlex.split(match[2])
    assert first == f"+experiment={name}"
    resolved = plain(compose_command(match[1], first, *others))
    bare = plain(compose_command(match[1]))
    assert resolved.keys() - {"row", "column", "world"} == bare.keys()  # a delta: it brings no key but its place in a table
    assert {k: v for k, v in resolved.items() if k != "out"} != {k: v for k, v in bare.items() if k != "out"}


@pytest.mark.parametrize("path", sorted(CONF.glob("sweep/*.yaml")), ids=lambda p: p.stem)
def test_sweeps_name_the_command_that_runs_them_and_every_job_composes(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    match = re.fullmatch(r"# python -m detkd\.(\w+) -m (.+)", lines[1])
    assert match is not None, lines[1]
    cfg = compose_command(match[1], *shlex.split(match[2]))
    parameters = OmegaConf.to_container(cfg.hydra.sweeper.params)
    assert isinstance(parameters, dict)
    del parameters["seed"]
    axes = [[f"{key}={value}" for value in str(values).split(",")] for key, values in parameters.items()]
    folders = set()
    for job in itertools.product(*axes):
        made = compose_command(match[1], *job, *shlex.split(match[2]))  # the sweeper puts what varies first
        plain(made)
        folders.add(made.hydra.sweep.subdir)
        assert made.hydra.sweep.subdir.endswith("/0")  # the seed
    assert len(folders) == math.prod(map(len, axes))  # stable names, each its own: so a sweep can go on where it was cut off


@pytest.mark.parametrize("experiment", ["scenes_invert", "bccd_invert", "yolo_coco"])
def test_rows_say_the_same_in_every_world(experiment: str) -> None:
    """What an experiment sets of a layout or an augmentation must not show through a row that names another."""
    base = [f"+experiment={experiment}", "+sweep=table2"]  # after the row: the sweeper puts what varies first
    for row, names in {"none": [], "jitter": ["Jitter"], "all": ["Jitter", "Flip", "Brightness", "Contrast", "Cutout"]}.items():
        made = build.build_list(compose_command("invert", f"row=augmentations/{row}", *base).augmentation)
        assert [type(item).__name__ for item in made] == names
    base[1] = "+sweep=images"
    for row in ("one_box", "false_positives"):
        cfg = compose_command("invert", f"row=inverted/{row}", *base)
        targets = instantiate(cfg.layout, _convert_="all")(8, ("a", "b"), (64, 64), torch.Generator().manual_seed(0))
        assert [len(target["labels"]) for target in targets] == [1] * 8
        sampling = build.build_part(cfg.sampling)
        assert (sampling is None) == (row == "one_box")
        if sampling is not None:
            sampling.check(build.build_stages(cfg)[0].iterations)
    node = compose_command("invert", "row=inverted/labels", *base, f"world.labels='{__file__}'").layout
    assert type(instantiate(node, _convert_="all")).__name__ == "LabelledBoxes"


@pytest.mark.parametrize("path", sorted(CONF.glob("sweep/*.yaml")), ids=lambda p: p.stem)
def test_a_row_is_the_same_in_a_sweep_as_alone(path: Path) -> None:
    match = re.fullmatch(r"# python -m detkd\.(\w+) -m (.+)", path.read_text().splitlines()[1])
    assert match is not None
    sweep = [a for a in shlex.split(match[2]) if a != f"+sweep={path.stem}"]
    parameters = compose_command(match[1], *sweep, f"+sweep={path.stem}").hydra.sweeper.params
    column = [f"+column={parameters.column.split(',')[0]}"] if "column" in parameters else []
    for name in parameters.row.split(","):
        here = plain(compose_command(match[1], f"row={name}", *sweep, f"+sweep={path.stem}"))
        alone = plain(compose_command(match[1], *sweep, f"+row={name}", *column))
        for key in ("layout", "sampling", "augmentation", "loss", "labels"):
            assert here.get(key) == alone.get(key), f"{name}: {key}"


@pytest.mark.parametrize("path", sorted(CONF.glob("gpu/*.yaml")), ids=lambda p: p.stem)
def test_sizes_for_a_gpu_compose_with_their_command(path: Path) -> None:
    match = re.fullmatch(r"# python -m detkd\.(\w+) -m (.+)", path.read_text().splitlines()[1])
    assert match is not None
    *others, last = shlex.split(match[2])
    assert last == f"+gpu={path.stem}"
    small, large = (plain(compose_command(match[1], *o)) for o in (others, [*others, last]))
    assert large["world"]["length"] > small["world"]["length"]
    assert large["batch_size"] > small["batch_size"]


@pytest.mark.parametrize("path", sorted(CONF.glob("sweep/*.yaml")), ids=lambda p: p.stem)
def test_the_table_of_a_sweep_lists_its_rows_and_columns(path: Path) -> None:
    match = re.fullmatch(r"# python -m detkd\.(\w+) -m (.+)", path.read_text().splitlines()[1])
    assert match is not None
    hydra = compose_command(match[1], *shlex.split(match[2])).hydra
    if "table" not in hydra.callbacks:
        assert path.stem == "images"  # sets for other sweeps, with nothing to compare
        return
    node = hydra.callbacks.table
    assert isinstance(instantiate(node), WriteTable)
    settings = check_settings(**{str(key): value for key, value in node.items() if key not in ("_target_", "out")})
    column = "column" if settings.column_key in ("column", None) else f"++{settings.column_key}"
    for axis, listed in (("row", settings.rows), (column, settings.columns)):
        swept = hydra.sweeper.params.get(axis)
        assert listed == (None if swept is None else tuple(name.rsplit("/")[-1] for name in swept.split(",")))
    assert (settings.column_key is None) == (column not in hydra.sweeper.params)


@pytest.mark.parametrize("path", sorted(CONF.glob("[rc]o*/*/*.yaml")), ids=lambda p: f"{p.parent.parent.name}/{p.stem}")
def test_rows_and_columns_name_their_command_and_their_place(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    axis, option = path.parent.parent.name, f"{path.parent.name}/{path.stem}"
    match = re.fullmatch(r"# python -m detkd\.(\w+) (.+)", lines[1])
    assert match is not None, lines[1]
    assert f"+{axis}={option}" in shlex.split(match[2])
    assert plain(compose_command(match[1], *shlex.split(match[2])))[axis] == path.stem


@pytest.mark.parametrize("name", [e for e in EXPERIMENTS if "detkd.invert" in (CONF / "experiment" / f"{e}.yaml").read_text()])
def test_the_parts_of_inversion_experiments_instantiate(name: str) -> None:
    cfg = compose_command("invert", f"+experiment={name}")
    loss = build.build_loss(cfg.loss)
    for stage in build.build_stages(cfg):
        assert set(stage.weights) <= set(loss.weights)
        stage.optimizer([torch.nn.Parameter(torch.zeros(1))])
        instantiate(cfg.image).noise(1, stage.resolution, torch.Generator())


# what an option asks of the user; any file that can be read stands for it
GIVEN = {"from_labels": [f"layout.annotations='{__file__}'"]}


@pytest.mark.parametrize(
    ("command", "group", "option"), choices("image", "layout", "sampling", "warm_start", "augmentation", "callbacks")
)
def test_parts_instantiate(command: str, group: str, option: str) -> None:
    node = compose_command(command, f"{group}={option}", *GIVEN.get(option, []))[group]
    made = [instantiate(node, _convert_="all")] if "_target_" in node else build.build_list(node)
    assert len(made) == (1 if "_target_" in node else len(node))


@pytest.mark.parametrize(("command", "group", "option"), choices("loss"))
def test_losses_instantiate_with_the_weight_they_say(command: str, group: str, option: str) -> None:
    beside = ["detection"] if option in ADDS_NO_LOSS else []
    cfg = compose_command(command, f"loss=[{','.join([option, *beside])}]")
    names = [*BUNDLES.get(option, [option]), *beside]
    assert build.build_loss(cfg.loss).weights == {name: cfg.loss[name].weight for name in names}


@pytest.mark.parametrize("option", options("optimizer"))
def test_optimizers_instantiate(option: str) -> None:
    make = instantiate(compose_command("distill", f"optimizer={option}").optimizer)
    assert isinstance(make([torch.nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)


@pytest.mark.parametrize("command", ["invert", "distill"])
def test_trainers_instantiate(command: str, tmp_path: Path) -> None:
    cfg = compose_command(command, "logger=csv", "trainer.accelerator=cpu", folder=tmp_path)
    trainer = build.build_trainer(cfg, [], tmp_path)
    assert [type(logger).__name__ for logger in trainer.loggers] == ["CSVLogger"]
    assert trainer.loggers[0].log_dir is not None
    assert Path(trainer.loggers[0].log_dir).resolve() == tmp_path.resolve()


def test_noise_and_scenes_instantiate_small() -> None:
    common = {"image_size": (32, 32), "resize": "stretch", "batch_size": 2}
    for option, size in (("noise", "images"), ("scenes", "train_images")):
        node = compose_command("distill", f"data={option}", f"data.{size}=4").data
        module = instantiate(node, classes=CLASSES["main"], **common)
        assert next(iter(module.train_dataloader())).images.shape == (2, 3, 32, 32)


def student(option: str) -> Detector:
    made = build.build_detector(compose_command("distill", f"student={option}").student, "student", classes=("a", "b"))
    assert made is not None
    return made


@pytest.mark.parametrize("option", NO_FILE)
def test_students_start_from_scratch_on_the_classes_of_the_teacher(option: str) -> None:
    made = student(option)
    assert made.spec.classes == ("a", "b")
    assert isinstance(made, Detector)


@pytest.mark.slow
@pytest.mark.parametrize("option", HEAVY)
def test_large_students_too(option: str) -> None:
    assert student(option).spec.classes == ("a", "b")


@pytest.mark.parametrize("option", EXTRA)
def test_students_of_an_optional_package(option: str) -> None:
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("no package ultralytics; pip install 'detkd[ultralytics]'")
    assert student(option).spec.classes == ("a", "b")


def test_every_student_is_tried() -> None:
    need_a_file = {"checkpoint", "darknet", "mmdetection", "yolo_fastest", "yolo_fastest_xl"}
    assert {*NO_FILE, *HEAVY, *EXTRA} == set(options("student")) - need_a_file


@pytest.mark.parametrize("option", ["yolo_fastest", "yolo_fastest_xl"])
def test_detectors_of_the_shared_folder(option: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKD_SHARED", str(shared))
    teacher = build.build_detector(compose_command("invert", f"teacher={option}").teacher, "teacher")
    verifier = build.build_detector(compose_command("invert", f"verifier={option}").verifier, "verifier")
    assert teacher is not None
    assert verifier is not None
    assert len(teacher.spec.classes) == 80
    assert teacher.spec == verifier.spec
    assert len(student(option).spec.classes) == 2


def test_the_built_in_teacher() -> None:
    teacher = build.build_detector(compose_command("invert").teacher, "teacher")
    assert teacher is not None
    fresh = student("scenes")
    assert teacher.spec.image_size == fresh.spec.image_size
    assert teacher.state_dict().keys() == fresh.state_dict().keys()


@pytest.mark.parametrize("option", ["yolo_fastest", "yolo_fastest_xl", "yolov3", "yolov3_spp", "yolov3_tiny"])
def test_without_a_network_the_error_says_which_file_to_put_where(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("DETKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETKD_SHARED", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    node = compose_command("invert", f"teacher={option}").teacher
    with pytest.raises(Exception, match=r"no network\); download https://\S+ yourself and put it at \S+cache") as error:
        build.build_detector(node, "teacher")
    assert isinstance(error.value, InputError) or isinstance(error.value.__cause__, InputError)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("option", ["checkpoint", "darknet", "mmdetection"])
def test_a_mandatory_value_that_is_missing_is_named(option: str) -> None:
    with pytest.raises(InputError, match=r"teacher\.\S+: expected a value on the command line, like teacher\.\S+=FILE"):
        build.build_detector(compose_command("invert", f"teacher={option}").teacher, "teacher")
