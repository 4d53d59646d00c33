"""Weights of ultralytics' models: state dicts and its own checkpoints, which are pickles and are read without running any of them.

Reading needs no package: most checkpoints here are made of stand-ins whose classes say that they are the package's.
"""

from __future__ import annotations

import collections
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detkd.detectors.ultralytics.weights import Husk, read_weights
from detkd.errors import InputError


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Modules by the package's names, in its place, with module classes that pickle finds there."""
    made: dict[str, Any] = {}
    for name in (
        "ultralytics",
        "ultralytics.nn",
        "ultralytics.nn.tasks",
        "ultralytics.nn.modules",
        "ultralytics.nn.modules.head",
    ):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    homes = {
        "DetectionModel": "ultralytics.nn.tasks",
        "Detect": "ultralytics.nn.modules.head",
        "Segment": "ultralytics.nn.modules.head",
    }
    for name, home in homes.items():
        made[name] = type(name, (nn.Module,), {"__module__": home, "__qualname__": name})
        setattr(sys.modules[home], name, made[name])
    return types.SimpleNamespace(**made)


def model_of(package: Any, head: str = "Detect", names: Any = None) -> Any:
    """A model of two layers: a convolution with its norm, and a head."""
    torch.manual_seed(0)
    model = package.DetectionModel()
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    last = getattr(package, head)()
    last.cv3 = nn.ModuleList([nn.Sequential(nn.Identity(), nn.Identity(), nn.Conv2d(4, 2, 1))])
    last.register_buffer("grid", torch.zeros(3), persistent=False)
    model.model = nn.Sequential(first, last)
    model.names = {0: "cat", 1: "dog"} if names is None else names
    model.yaml = {"nc": 2, "scale": "n"}
    return model


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def save_opcodes(path: Path, pickled: bytes) -> None:
    """A file of torch.save whose pickle is replaced."""
    buffer = io.BytesIO()
    torch.save({}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.namelist():
            new.writestr(item, pickled if item.endswith("data.pkl") else old.read(item))


class Calls:
    """Pickles as the call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("prefix", ["", "model.", "network.", "module."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_state_dict_by_any_wrappers_names(suffix: str, prefix: str, tmp_path: Path) -> None:
    state = {"model.0.conv.weight": torch.rand(2, 3), "model.22.cv3.0.2.bias": torch.rand(2)}
    path = tmp_path / f"state{suffix}"
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    if suffix == ".pt":
        torch.save(wrapped, path)
    else:
        save_file(wrapped, path)
    found = read_weights(path)
    assert_same(found.state, state)
    assert found.classes is None


def test_state_dict_under_a_key(tmp_path: Path) -> None:
    torch.save({"model": {"model.0.bias": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pt")
    assert_same(read_weights(tmp_path / "a.pt").state, {"model.0.bias": torch.ones(2)})


@pytest.mark.parametrize("form", ["model", "ema", "bare"])
def test_checkpoint_of_modules(form: str, package: Any, tmp_path: Path) -> None:
    model, other = model_of(package), model_of(package)
    nn.init.zeros_(other.model[0][0].weight)
    content = {"model": {"model": model, "ema": None}, "ema": {"model": other, "ema": model}, "bare": model}[form]
    torch.save(content, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert_same(found.state, model.state_dict())
    assert found.classes == ("cat", "dog")


def test_half_precision_is_kept_for_the_detector_to_widen(package: Any, tmp_path: Path) -> None:
    torch.save({"model": model_of(package).half()}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").state["model.0.0.weight"].dtype == torch.float16


def test_what_training_keeps_beside_the_model_is_passed_over(package: Any, tmp_path: Path) -> None:
    content = {
        "model": model_of(package),
        "train_args": {"data": pathlib.PurePosixPath("/data/coco.yaml"), "lr0": 0.01},
        "args": types.SimpleNamespace(box=7.5),
        "best_fitness": torch.tensor(0.5).numpy()[()],
        "hooks": collections.OrderedDict(),
    }
    torch.save(content, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ({1: "b", 0: "a"}, ("a", "b")),
        ({"a": 0}, None),
        ({0: 1}, None),
        (None, None),
        ({0: "a", 7: "b"}, None),
        (3, None),
    ],
    ids=["list", "dict", "inverted", "numbers", "none", "gap", "number"],
)
def test_names(names: Any, expected: Any, package: Any, tmp_path: Path) -> None:
    model = model_of(package)
    model.names = names
    torch.save({"model": model}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").classes == expected


def test_other_tasks_are_named(package: Any, tmp_path: Path) -> None:
    torch.save({"model": model_of(package, "Segment")}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: expected a detection model with the head Detect, found Segment"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Calls(os.system, "touch {}"), "posix.system"),
        (Calls(eval, "open('{}', 'w')"), "builtins.eval"),
        (Calls(pathlib.Path.touch, pathlib.PurePosixPath("x")), "getattr"),
        (Calls(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        (Calls(torch.load, "x"), "torch.serialization.load"),
        (Calls(nn.init.zeros_, "x"), "torch.nn.init.zeros_"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("beside", [True, False])
def test_code_in_a_checkpoint_is_refused_by_name(call: Calls, named: str, beside: bool, package: Any, tmp_path: Path) -> None:
    mark = tmp_path / "run"
    call = Calls(call.function, *(a.format(mark) if isinstance(a, str) else a for a in call.arguments))
    torch.save({"model": model_of(package), "extra": call} if beside else call, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=rf"bad\.pt: expected .* found .*{named}.*nothing was run"):
        read_weights(tmp_path / "bad.pt")
    assert not mark.exists()


def test_classes_of_the_package_are_not_called(package: Any, tmp_path: Path) -> None:
    """A pickle may call an admitted class with arguments of its choice; the real one evaluates text that it finds in its yaml."""
    called = []

    def record(self: Any, *arguments: Any) -> None:
        called.append(arguments)

    package.DetectionModel.__init__ = record
    torch.save({"model": Calls(package.DetectionModel, {"activation": "print()"})}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="expected the tensors of an ultralytics model, found none"):
        read_weights(tmp_path / "a.pt")
    assert not called


def test_classes_that_the_process_trusts_are_not_called_either(package: Any, tmp_path: Path) -> None:
    called = []

    class Trusted:
        def __init__(self, *arguments: Any) -> None:
            called.append(arguments)

    Trusted.__module__, Trusted.__qualname__ = "ultralytics.nn.modules.head", "Trusted"
    sys.modules["ultralytics.nn.modules.head"].Trusted = Trusted  # type: ignore[attr-defined]
    before = torch.serialization.get_safe_globals()
    torch.save({"model": model_of(package), "extra": Calls(Trusted, 1)}, tmp_path / "a.pt")
    with torch.serialization.safe_globals([Trusted]):
        found = read_weights(tmp_path / "a.pt")
        assert Trusted in torch.serialization.get_safe_globals()
    assert found.classes == ("cat", "dog")
    assert not called
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_state_of_a_husk_is_only_looked_at(tmp_path: Path) -> None:
    """BUILD with a state that is no dict, or has attributes of other kinds than a module's."""
    states: list[Any] = [
        None,
        3,
        ({"a": 1}, {"__class__": 2}),
        {"_modules": 3},
        {"_modules": {"a": 1}},
        {"_parameters": {1: 2}},
    ]
    for state in states:
        husk = Husk()
        husk.__setstate__(state)
        assert husk.members("_modules") == (state["_modules"] if state == {"_modules": {"a": 1}} else {})
        assert husk.members("_parameters") == {}


@pytest.mark.parametrize("content", [3, "text", [1], {}, {"model": None}, {"model": 3}, {"a": torch.ones(1), "b": 2}], ids=str)
def test_a_file_without_a_model_says_so(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: expected a state dict or a checkpoint of ultralytics, found"):
        read_weights(tmp_path / "a.pt")


def test_tensors_of_another_network_are_named(tmp_path: Path) -> None:
    torch.save({"backbone.conv1.weight": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(
        InputError, match=r"expected tensors of an ultralytics model like model\.0\.conv\.weight, found backbone\.conv1\.weight"
    ):
        read_weights(tmp_path / "a.pt")


def old_pickle(path: Path) -> None:
    torch.save({"model.0.bias": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(path))


def cut(path: Path) -> None:
    torch.save({"model.0.bias": torch.ones(2)}, path)
    path.write_bytes(path.read_bytes()[:200])


def unknown_opcode(path: Path) -> None:
    save_opcodes(path, pickle.dumps({"a": b"bytes"}, protocol=4))


@pytest.mark.parametrize(
    "make", [old_pickle, scripted, cut, unknown_opcode, lambda p: p.write_bytes(b"not weights"), lambda p: p.write_bytes(b"")]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_and_foreign_files_are_named(make: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"odd{suffix}"
    make(path)
    with pytest.raises(InputError, match=rf"odd{suffix}: expected"):
        read_weights(path)


def test_no_class_of_torch_is_needed(tmp_path: Path, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": model_of(package)}, tmp_path / "a.pt")

    def forbidden(*_: Any) -> None:
        raise AssertionError("a module was made")

    monkeypatch.setattr(nn.Module, "__init__", forbidden)
    monkeypatch.setattr(nn.Module, "__setstate__", forbidden)
    for name in [n for n in sys.modules if n.split(".")[0] == "ultralytics"]:
        monkeypatch.delitem(sys.modules, name)
    assert len(read_weights(tmp_path / "a.pt").state) == 9


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    load = torch.load
    yield
    assert torch.load is load
