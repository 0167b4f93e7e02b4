"""The rows of the design and the purity of each, read from the source itself."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

ROWS = (
    {"errors", "config", "patch_config", "train_config", "config_json", "files", "machine"},
    {"volume", "patches", "postprocess", "metrics", "cover", "phantom", "solids", "command"}
    | {"tiles", "measures", "quality", "calibration", "log_odds", "intensity", "content", "lps"},
    {
        "image_io",
        "image_names",
        "dicom_series",
        "dicom_frames",
        "image_errors",
        "header_geometry",
        "text_header",
        "study",
        "quiet",
    }
    | {"records", "tfrecords", "record_match", "mined_records", "lineage", "cost", "origin"},
    {"dataset", "draws", "model", "dense_steps", "dense_builder", "dense", "crf", "folding", "messages", "retries"},
    {
        "training",
        "callbacks",
        "memory",
        "evaluator",
        "segment_graph",
        "predict",
        "bundle",
        "case_maps",
        "recipe",
        "choosing",
    }
    | {"signatures", "served", "export", "wire", "wire_grpc", "wire_rest"},
    {"train", "segment", "evaluate", "report", "pictures", "client", "demo", "jobs", "scans", "reliability_picture"}
    | {"mask_report", "case_scores"},
)
"""Modules of femur_tf, lowest first. An import points to a lower row, or within a row without a cycle."""

TOP_ROW = len(ROWS)
OUTER = {"data_prep", "tuning"}
HEAVY = {"tensorflow", "keras", "keras_tuner", "tensorboard"}
FILE_MODULES = {"pathlib", "os", "io", "shutil", "tempfile", "glob"}
OPENERS = re.compile(
    r"(^|\.)(open|read_text|read_bytes|write_text|write_bytes)$"
    r"|^(np|numpy)\.(load|loadtxt|genfromtxt|fromfile|memmap|save|savez|savez_compressed|savetxt)$"
    r"|\.tofile$"
)
IMAGE_OPENERS = re.compile(
    r"\.(ReadImage|WriteImage|ImageSeriesReader|ImageFileReader|ImageFileWriter)$|^(nib|nibabel)\.(load|save)$"
)
CONFIG_OF_ROW_1 = {"postprocess": {"RecipeConfig", "Step"}, "intensity": {"NormalisationConfig"}}
"""What row 1 may know of the settings."""

FILES = sorted(path for package in ("femur_tf", *OUTER) for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name of a source file; a package is named without `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}


def row_of(module: str) -> int | None:
    """Return the row of a module of ours, None where the design has no place for it."""
    parts = module.split(".")
    if parts[0] in OUTER:
        return TOP_ROW
    if len(parts) == 1:
        return 0  # the package itself: a docstring and a version
    return next((row for row, names in enumerate(ROWS) if parts[1] in names), None)


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that is imported, at the top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """Return the modules of ours that `module` imports."""
    found = set()
    for name in imported_names(MODULES[module]):
        parts = name.split(".")
        known = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        found.add(next((candidate for candidate in known if candidate in MODULES), module))
    return found - {module}


def called_names(tree: ast.AST) -> set[str]:
    """Return the dotted names of what is called; a call on an expression gives `.method`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            names.add(text if re.fullmatch(r"[\w.]+", text) else "." + text.rpartition(".")[2])
    return names


def broad_excepts(tree: ast.AST) -> list[int]:
    """Return the lines of `except:`, `except Exception` and `except BaseException`."""
    broad = {"Exception", "BaseException"}
    handlers = (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
    return [
        h.lineno
        for h in handlers
        if h.type is None or {n.id for n in ast.walk(h.type) if isinstance(n, ast.Name)} & broad
    ]


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return all functions and methods, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Yield the public functions and classes of a module, and the public methods of those classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            inner = node.body if isinstance(node, ast.ClassDef) else []
            yield from (n for n in inner if isinstance(n, kinds[:2]) and not n.name.startswith("_"))


def config_names(tree: ast.AST) -> set[str]:
    """Return what a module uses of femur_tf.config."""
    prefix = "femur_tf.config."
    imported = {name.removeprefix(prefix) for name in imported_names(tree) if name.startswith(prefix)}
    used = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    attributes = {node.attr for node in used if node.value.id == "config"}
    return imported | (attributes if "femur_tf.config" in set(imported_names(tree)) else set())


@pytest.mark.parametrize(
    ("check", "source", "expected"),
    [
        (broad_excepts, "try:\n  f()\nexcept:\n  pass", [3]),
        (broad_excepts, "try:\n  f()\nexcept (OSError, Exception):\n  pass", [3]),
        (broad_excepts, "try:\n  f()\nexcept (OSError, ValueError):\n  pass", []),
        (called_names, "path.open()\nf(x)[0].write_text('a')", {"path.open", "f", ".write_text"}),
        (lambda tree: list(imported_names(tree)), "def f():\n  from keras import ops", ["keras.ops"]),
        (
            lambda tree: [d.name for d in public_definitions(tree)],
            "class A:\n  def b(self): ...\ndef _c(): ...",
            ["A", "b"],
        ),
        (config_names, "from femur_tf import config\nconfig.Step", {"Step"}),
        (config_names, "from femur_tf.config import PatchConfig", {"PatchConfig"}),
    ],
)
def test_the_checks_see_what_they_look_for(check, source, expected):
    assert check(ast.parse(source)) == expected


@pytest.mark.parametrize(
    ("name", "opens"),
    [("open", True), ("path.read_text", True), ("np.load", True), ("reopen", False), ("ndimage.binary_opening", False)],
)
def test_openers_are_known_by_name(name, opens):
    assert bool(OPENERS.search(name)) == opens


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_row(module):
    assert row_of(module) is not None, f"{module} is in no row: place it in ROWS, and in ARCHITECTURE.md"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_lower_rows(module):
    upwards = {name for name in own_imports(module) if (row_of(name) or 0) > (row_of(module) or 0)}
    assert not upwards


def test_imports_have_no_cycle():
    graphlib.TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("femur_tf")])
def test_femur_tf_never_imports_the_outer_packages(module):
    assert not {name.split(".")[0] for name in imported_names(MODULES[module])} & OUTER


@pytest.mark.parametrize("module", [m for m in MODULES if (row_of(m) or 0) <= 1])
def test_the_two_lowest_rows_import_no_tensorflow(module):
    assert not {name.split(".")[0] for name in imported_names(MODULES[module])} & HEAVY


@pytest.mark.parametrize("module", [m for m in MODULES if row_of(m) == 1])
def test_row_1_touches_no_files(module):
    allowed = {"pathlib"} if module == "femur_tf.command" else set()  # a flag's type is Path
    assert not {name.split(".")[0] for name in imported_names(MODULES[module])} & FILE_MODULES - allowed
    assert not {name for name in called_names(MODULES[module]) if OPENERS.search(name) or IMAGE_OPENERS.search(name)}


@pytest.mark.parametrize("module", [m for m in MODULES if row_of(m) == 1])
def test_row_1_knows_only_its_own_settings(module):
    assert config_names(MODULES[module]) <= CONFIG_OF_ROW_1.get(module.split(".")[1], set())


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.split(".")[-1] not in ("image_io", "dicom_series", "dicom_frames")]
)
def test_only_two_modules_open_images(module):
    assert not {name for name in called_names(MODULES[module]) if IMAGE_OPENERS.search(name)}


@pytest.mark.parametrize("module", MODULES)
def test_no_assert_no_print_no_broad_except(module):
    tree = MODULES[module]
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not {"print", "builtins.print"} & called_names(tree)
    assert not broad_excepts(tree)


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_public_definitions_have_docstrings(module):
    tree = MODULES[module]
    assert ast.get_docstring(tree)
    assert not [node.name for node in public_definitions(tree) if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module):
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions(MODULES[module])}
    assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}


def test_saved_models_holds_no_python():
    assert not list((ROOT / "saved_models").rglob("*.py"))
