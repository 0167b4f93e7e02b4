"""Each command as a user starts it: a process of its own, its flags, its exit status."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("femur_tf", "data_prep", "tuning")
START_S = 1.5
"""A command answers `--help` in less than this, best of six: a busy machine may spoil one try, not all."""
LIBRARIES = "import SimpleITK, nibabel, numpy, rich, scipy.ndimage, skimage.measure, tyro"
SLOW_MACHINE = 2.0
"""On a machine that takes longer to import these libraries alone, a command answers within so many times that."""
HEAVY = {"tensorflow", "keras", "keras_tuner", "tensorboard"}
IMPORTED = re.compile(r"^import time:.*\| +([\w.]+)$", re.MULTILINE)
"""A line of `python -X importtime`: the module's name is its last column."""


def is_command(path: Path) -> bool:
    """Return whether a source file ends with an `if __name__ == "__main__"` block."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree.body)


def discover() -> list[str]:
    """Return the modules that a user starts with `python -m`."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if is_command(path))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return [name.removesuffix(".__main__") for name in names]


COMMANDS = discover()


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would, without the coverage hook that would slow its start."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_command_is_known_by_its_last_block(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("TEXT = 'if __name__ == \"__main__\": ...'\n")
    assert not is_command(source)
    source.write_text('if __name__ == "__main__":\n    pass\n')
    assert is_command(source)


@pytest.fixture(scope="module")
def libraries_s():
    """How long Python takes to start and import what commands stand on, best of three."""
    durations_s = []
    for _ in range(3):
        begin = time.perf_counter()
        assert start("-c", LIBRARIES).returncode == 0
        durations_s.append(time.perf_counter() - begin)
    return min(durations_s)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_at_once(command, libraries_s):
    limit_s = max(START_S, SLOW_MACHINE * libraries_s)
    durations_s = []
    for _ in range(6):
        begin = time.perf_counter()
        result = start("-m", command, "--help")
        durations_s.append(time.perf_counter() - begin)
        assert result.returncode == 0, result.stderr
        if durations_s[-1] < limit_s:
            break
    assert min(durations_s) < limit_s
    assert "usage:" in result.stdout.lower()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_tensorflow(command):
    result = start("-X", "importtime", "-m", command, "--help")
    assert result.returncode == 0
    modules = {name.split(".")[0] for name in IMPORTED.findall(result.stderr)}
    assert "tyro" in modules
    assert not modules & HEAVY


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_bad_flags_are_refused_with_status_2(command):
    result = start("-m", command, "--no-such-flag")
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr
