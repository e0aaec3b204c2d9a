"""Imports point one way, and `import fastconv1d` costs next to nothing."""

from __future__ import annotations

import ast
import compileall
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastconv1d import config

PACKAGE = Path(__file__).parents[1] / "fastconv1d"
COSTS = {"cpu_costs", "gpu_costs", "grad_costs"}
CORE = ["config", "problem", "build", "tuned", "tiles", *sorted(COSTS)]
CORE += ["plan", "ops", "functional", "modules"]
MAY_IMPORT: dict[str, set[str]] = {
    "config": set(),
    "problem": {"config"},
    "build": {"config"},
    "tuned": {"config", "problem", "build"},
    "tiles": {"problem"},
    "cpu_costs": {"problem"},
    "gpu_costs": {"problem", "tiles"},
    "grad_costs": {"problem", "tiles", "gpu_costs"},
    "plan": {"config", "problem", "build", "tuned", "tiles", *COSTS},
    "ops": {"config", "problem", "plan", "build"},
    "functional": {"ops", "problem"},
    "modules": {"functional"},
    "__init__": {"ops", "functional", "modules"},
    "compare": {"problem"},
}
OUTSIDE = {"rich", "matplotlib", "typer", "numpy", "hypothesis"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports; ours as 'fastconv1d.NAME'."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ("fastconv1d." if node.level else "") + (node.module or "")
            base = base.rstrip(".")
            if base == "fastconv1d":
                found |= {f"fastconv1d.{alias.name}" for alias in node.names}
            else:
                found.add(base)
    return found


def ours(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("fastconv1d.")}


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_one_way(module: str) -> None:
    found = ours(imports(PACKAGE / f"{module}.py"))
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert found & modules <= MAY_IMPORT[module]


def test_the_layers_above_are_not_imported_by_those_below() -> None:
    above = {path.stem for path in PACKAGE.glob("*.py")} - set(CORE) - {"__init__"}
    for module in [*CORE, "__init__"]:
        assert not ours(imports(PACKAGE / f"{module}.py")) & above


@pytest.mark.parametrize("module", [*CORE, "__init__"])
def test_the_core_needs_torch_alone(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
    assert not roots & OUTSIDE
    allowed = {"torch", "fastconv1d"} | set(sys.stdlib_module_names)
    assert roots <= allowed


def test_an_arrow_the_other_way_is_seen(tmp_path: Path) -> None:
    for text in (
        "from fastconv1d import ops",
        "from fastconv1d.ops import enable",
        "import fastconv1d.ops",
        "from .ops import enable",
        "from . import ops",
        "def f():\n    from fastconv1d import ops",
    ):
        path = tmp_path / "config.py"
        path.write_text(text)
        assert ours(imports(path)) == {"ops"}, text


READS = re.compile(r'(?:environ(?:\.\w+)?[\[(]|getenv\(|environment\()\s*"(FASTCONV1D\w+)"')


def test_every_environment_variable_is_declared_in_config() -> None:
    sources = [*PACKAGE.glob("*.py"), *(PACKAGE / "csrc").iterdir()]
    read = {name for path in sources for name in READS.findall(path.read_text())}
    assert read == set(config.ENVIRONMENT)


PROBE = """
import sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import fastconv1d
seconds = time.perf_counter() - start
new = set(sys.modules) - before
heavy = {'rich', 'matplotlib', 'typer', 'numpy', 'torch.utils.cpp_extension'} & new
assert not heavy, heavy
assert not torch.cuda.is_initialized()
print(fastconv1d.__file__, seconds)
"""


def test_import_is_light_and_touches_no_gpu(tmp_path: Path) -> None:
    # As pip installs it: with its bytecode. An environment may forbid Python to write any, and the
    # compiler of this package's sources would then be what is timed.
    installed = shutil.copytree(
        PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")
    )
    assert compileall.compile_dir(installed, quiet=1)
    command = [sys.executable, "-c", PROBE]
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
        for _ in range(3)
    ]
    places, seconds = zip(*(run.stdout.rsplit(maxsplit=1) for run in runs), strict=True)
    assert set(places) == {str(installed / "__init__.py")}
    assert min(map(float, seconds)) <= 0.1
