"""The documents against the code: flags have their row, links lead somewhere, modules are named."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from data_prep.hard_examples import MiningConfig
from femur_tf.config import PredictConfig
from femur_tf.wire import ServerConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "plan": ("data_prep.plan", "PlanArguments"),
    "write_records": ("data_prep.write_records", "WriteArguments"),
    "records": ("femur_tf.records", "CheckArguments"),
    "mine": ("data_prep.mine", "MineArguments"),
    "train": ("femur_tf.train", "TrainArguments"),
    "evaluate": ("femur_tf.evaluate", "EvaluateArguments"),
    "segment": ("femur_tf.segment", "SegmentArguments"),
    "client": ("femur_tf.client", "ClientArguments"),
    "export": ("femur_tf.export", "ExportArguments"),
    "demo": ("femur_tf.demo", "DemoArguments"),
    "search": ("tuning.search", "SearchArguments"),
    "search_report": ("tuning.report", "ReportArguments"),
}
POSITIONAL = {"work", "image", "mask", "folder"}


def _flags_in_table(text):
    """Return the flags in the first cells of a page's tables."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return {flag for row in rows for flag in re.findall(r"`(--[a-z0-9-]+)(?: N)?`", row.split("|")[1])}


@pytest.mark.parametrize(("page", "module", "name"), [(page, *where) for page, where in COMMANDS.items()])
def test_a_commands_page_has_its_flags_and_no_others(page, module, name):
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    if name == "SegmentArguments":  # its prediction flags have no prefix
        fields = [*(f for f in fields if f.name != "prediction"), *dataclasses.fields(PredictConfig)]
    if name == "ClientArguments":  # nor have those of its connection
        fields = [*(f for f in fields if f.name != "connection"), *dataclasses.fields(ServerConfig)]
    if name == "MineArguments":
        kept = [f for f in fields if f.name not in ("mining", "prediction")]
        fields = [*kept, *dataclasses.fields(MiningConfig), *dataclasses.fields(PredictConfig)]
    flags = {"--" + field.name.replace("_", "-") for field in fields if field.name not in POSITIONAL}
    assert _flags_in_table((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")) == flags


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def _anchors(page):
    """Return the anchors of a page's headings, as they are shown on the web."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_anchors_of_links_are_headings(page):
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    assert not [(to, anchor) for to, anchor in links if anchor not in _anchors(page.parent / to if to else page)]


def test_the_glossary_explains_each_word_once():
    _, glossary = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## Glossary\n")
    words = re.findall(r"(?m)^\| ([^|]+) \|", glossary)[2:]  # below the header and its line
    assert words == sorted(set(words))


def test_architecture_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    modules = {path.stem for folder in ("femur_tf", "data_prep") for path in (ROOT / folder).glob("[a-z]*.py")}
    assert not {name for name in modules if f"`{name}`" not in text}
