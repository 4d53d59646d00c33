"""The documents say what is there."""

from __future__ import annotations

import importlib.util
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from detkd.runtime.run import config_dir

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])
COMMANDS = (
    "invert",
    "tile",
    "distill",
    "evaluate",
    "gallery",
    "status",
    "scenes",
    "table",
    "features",
    "analyze",
    "compare",
    "report",
    "export",
)
# docs/methods/<name>.md is about the term losses/<name>.py, or about these components
COMPONENTS = {
    "image": ["detkd.inversion.image"],
    "stage": ["detkd.inversion.stage"],
    "augmentation": ["detkd.inversion.augment", "detkd.data.augment"],
    "layout": ["detkd.inversion.layout", "detkd.inversion.labelled_boxes"],
    "false_positives": ["detkd.inversion.false_positives"],
    "quality": ["detkd.inversion.quality"],
    "warm_start": ["detkd.inversion.warm_start"],
    "robustness": ["detkd.evaluation.robustness", "detkd.evaluation.corruptions.ice"],
    "tiling": ["detkd.data.tile", "detkd.data.tilings", "detkd.data.counts"],
}


def sections() -> Iterator[tuple[str, str, list[str], list[str]]]:
    """Of docs/config.md: (heading, command, overrides, keys in the first column of its tables)."""
    command = "invert"
    for part in re.split(r"^(?=##+ )", (ROOT / "docs/config.md").read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        name = heading.strip("# ")
        if heading.startswith("## "):
            command = name if name in COMMANDS else "distill" if name == "Detectors" else "invert"
        overrides = re.findall(r"`([^`]*=[^`]*)`", name)
        keys = [key for row in tables(text, "key") for key in re.findall(r"`([^`]+)`", row[0])]
        yield name, command, overrides, keys


def tables(text: str, first: str) -> Iterator[list[str]]:
    """Rows of the tables whose first column is headed ``first``."""
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]
        if rows[0][0].strip("| ") == first:
            yield from rows[2:]


def composed(command: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(command, overrides)


SECTIONS = [section for section in sections() if section[3]]


@pytest.mark.parametrize(("command", "overrides", "keys"), [s[1:] for s in SECTIONS], ids=[s[0] for s in SECTIONS])
def test_every_key_in_the_documents_is_in_the_config(command: str, overrides: list[str], keys: list[str]) -> None:
    config = composed(command, overrides)
    absent = object()
    for key in keys:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent, default=absent) if parent else config
        assert node is not absent, f"{key} is not in the config of {command} {' '.join(overrides)}"
        names = [str(k) for k in (node if isinstance(node, DictConfig) else range(len(node)))]
        assert name in names, f"{key} is not in the config of {command} {' '.join(overrides)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_top_key_and_group_is_in_the_documents(command: str) -> None:
    documented = {key.split(".")[0] for _, of, _, keys in sections() if of == command for key in keys}
    text = (ROOT / "docs/config.md").read_text()
    part = text.split(f"\n## {command}\n")[1].split("\n## ")[0]
    documented |= {row[0].strip("| `") for row in tables(part, "group")}
    assert {str(key) for key in composed(command, [])} <= documented


@pytest.mark.parametrize("group", sorted({p.parent.name for p in config_dir().glob("*/*.yaml")} - {"hydra"}))
def test_every_option_of_a_group_is_in_the_documents(group: str) -> None:
    text = (ROOT / "docs/config.md").read_text()
    options = sorted(p.stem for p in (config_dir() / group).glob("*.yaml"))
    assert options
    assert [option for option in options if f"`{option}`" not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=[p.relative_to(ROOT).as_posix() for p in DOCUMENTS])
def test_relative_links_resolve(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.relative_to(ROOT)}: {link} leads nowhere"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{document.relative_to(ROOT)}: {link} names no heading"


def test_every_method_is_a_term_or_a_component_and_every_term_has_a_document() -> None:
    documents = {p.stem for p in (ROOT / "docs/methods").glob("*.md")}
    terms = {p.stem for p in (config_dir() / "loss").glob("*.yaml") if "_target_" in p.read_text()}
    assert documents == terms | set(COMPONENTS)


@pytest.mark.parametrize("document", sorted((ROOT / "docs/methods").glob("*.md")), ids=lambda p: p.stem)
def test_code_that_a_method_names_is_there(document: Path) -> None:
    modules = COMPONENTS.get(document.stem, [f"detkd.losses.{document.stem}"])
    text = document.read_text()
    for module in modules:
        assert importlib.util.find_spec(module) is not None
        assert f"`{module.replace('.', '/')}.py`" in text, f"{document.name} does not name the file of {module}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=[p.relative_to(ROOT).as_posix() for p in DOCUMENTS])
def test_python_snippets_compile_and_their_imports_exist(document: Path) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL):
        compile(textwrap.dedent(snippet), f"<snippet of {document.name}>", "exec")
        for module, names in re.findall(r"^from (detkd[\w.]*) import (.+)$", snippet, flags=re.MULTILINE):
            imported = importlib.import_module(module)
            for name in re.findall(r"\w+", names):
                assert hasattr(imported, name), f"{document.name}: {module} has no {name}"
