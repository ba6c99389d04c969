"""How much a head costs its author: lines of code of the packages under plugins/."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("count_lines", ROOT / "plugins" / "count_lines.py")
count_lines = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(count_lines)


def test_lines_of_code_are_counted_without_blanks_comments_and_docstrings() -> None:
    text = '"""Doc\n\nmore."""\n\nx = 1  # why\n\n\ndef f():\n    """Doc."""\n    # why\n    return """a\nb"""\n'
    assert count_lines.count_code(text) == 4


def test_every_package_is_counted_and_small(capsys) -> None:
    counted = count_lines.count_all()
    assert sorted(counted) == ["tpo-head-contrast", "tpo-head-depth", "tpo-head-frame", "tpo-head-point", "tpo-jsonl-log"]
    for package, modules in counted.items():
        code = {name: own for name, (_, own) in modules.items()}
        if package.startswith("tpo-head-"):
            assert code["__init__"] + code["head"] <= 100, package  # card, config, codec, module
        assert sum(code.values()) <= 165, package
    count_lines.main()
    assert capsys.readouterr().out.count("of code") == len(counted)
