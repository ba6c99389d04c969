"""Print how many lines of Python each package under plugins/ has: all lines, and lines of code (no blanks, comments, docstrings).

python plugins/count_lines.py
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

HERE = Path(__file__).parent


def count_all(folder: Path = HERE) -> dict[str, dict[str, tuple[int, int]]]:
    """Return package -> module -> (lines, lines of code); tests are left out."""
    counted: dict[str, dict[str, tuple[int, int]]] = {}
    for path in sorted(folder.glob("*/*/*.py")):
        if path.parent.name not in ("tests", "build") and (path.parent / "__init__.py").is_file():
            text = path.read_text("utf-8")
            counted.setdefault(path.parent.parent.name, {})[path.stem] = (len(text.splitlines()), count_code(text))
    return counted


def count_code(text: str) -> int:
    """Return the number of lines that hold code."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for first in node.body:
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                    lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def main() -> None:
    for package, modules in count_all().items():
        total, code = (sum(column) for column in zip(*modules.values(), strict=True))
        parts = ", ".join(f"{name.replace('__init__', 'card')} {own}" for name, (_, own) in modules.items())
        print(f"{package:20} {total:4} lines, {code:4} of code: {parts}")


if __name__ == "__main__":
    main()
