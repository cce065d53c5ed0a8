"""The frame: sizes, layers, dependencies, cheap imports, and a README that tells the truth."""

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vlalign
from vlalign import cli

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(vlalign.__path__, "vlalign.")
    if module.name != "vlalign.__main__"
)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


def test_importing_the_package_starts_nothing() -> None:
    code = "import sys, vlalign; print(sorted({'jax', 'numpy', 'grain'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _check_sizes(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "check_sizes.py", root]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_sizes_of_this_tree() -> None:
    done = _check_sizes(ROOT)
    assert done.returncode == 0, done.stdout


def test_sizes_find_a_long_file_and_a_long_function(tmp_path: Path) -> None:
    (tmp_path / "vlalign").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "vlalign" / "long.py").write_text("x = 1\n" * 401)
    body = "        pass\n" * 60
    (tmp_path / "configs" / "wide.py").write_text(f"class A:\n    async def f(self):\n{body}")
    done = _check_sizes(tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "vlalign/long.py: 401 lines; at most 400",
        "configs/wide.py:2: f has 61 lines; at most 60",
    ]


def test_forbidden_imports_break_the_layers(tmp_path: Path) -> None:
    """The contracts of import-linter are not empty: on a spoilt copy each one is broken."""
    spoilt = {
        "data": ("import jax.numpy", "import vlalign.parallel"),
        "losses": ("import flax", "import vlalign.encoders"),
        "encoders": ("import optax",),
        "evals": ("import vlalign.cli",),
    }
    ignore = shutil.ignore_patterns("assets", "__pycache__")
    shutil.copytree(ROOT / "vlalign", tmp_path / "vlalign", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package, lines in spoilt.items():
        with (tmp_path / "vlalign" / package / "__init__.py").open("a") as file:
            file.write("\n" + "\n".join(lines) + "\n")
    (tmp_path / "vlalign" / "attic.py").touch()
    code = "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    shown = " ".join(done.stdout.split())
    assert "attic" in shown  # a new part of the house must be given its floor
    for package, lines in spoilt.items():
        for line in lines:
            imported = line.split()[1].removesuffix(".numpy")
            assert f"vlalign.{package} is not allowed to import {imported}" in shown, shown


def _imported(folder: Path) -> set[str]:
    """The top-level names of all absolute imports under `folder`, also those inside functions."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[ ;]", name)[0]).lower()


def test_the_dependencies_are_what_is_imported() -> None:
    """None is missing, and none is there that nobody imports."""
    imported = (_imported(ROOT / "vlalign") | _imported(ROOT / "configs")) - {"vlalign"}
    owners = importlib.metadata.packages_distributions()
    used = {
        _normal(owner)
        for name in imported - set(sys.stdlib_module_names)
        for owner in owners.get(name, [name])
    }
    indirect = {"importlib-resources"}  # tensorflow-datasets imports it without asking for it
    declared = {_normal(name) for name in PROJECT["project"]["dependencies"]}
    assert used - {"jaxlib"} == declared - indirect


def test_the_readme_names_what_exists() -> None:
    """Its `vlalign` commands, `make` targets and links to files of the repository."""
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(re.findall(r"(?:^ *|`|bin/|\$ )vlalign ([a-z]+)", text, re.MULTILINE))
    assert commands
    assert commands <= set(cli.COMMANDS)
    made = set(re.findall(r"(?:^ *|`|\$ )make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= made <= targets
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
