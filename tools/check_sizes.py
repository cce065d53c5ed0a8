"""Keeps files and functions short: `python tools/check_sizes.py [ROOT]`.

A file that wants to be longer is two rooms. (Docstrings, style and types are ruff's and mypy's.)
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("vlalign", "configs", "benchmarks", "tools")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def findings(root: Path) -> Iterator[str]:
    """One line for each file or function under `root` that is too long."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            name = path.relative_to(root)
            lines = len(text.splitlines())
            if lines > MAX_FILE_LINES:
                yield f"{name}: {lines} lines; at most {MAX_FILE_LINES}"
            yield from _long_functions(str(name), ast.parse(text, filename=str(path)))


def _long_functions(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield (
                    f"{name}:{node.lineno}: {node.name} has {lines} lines;"
                    f" at most {MAX_FUNCTION_LINES}"
                )


def main() -> int:
    """Prints the findings; the exit code is 1 if there are any."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    found = list(findings(root))
    print("\n".join(found) or "sizes: all files and functions are short enough")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
