"""YAML with lines: what is read, what is refused, and how the message places it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpo_core.config import parse_yaml, read_yaml
from tpo_core.config.show import _scalar
from tpo_core.errors import ConfigError


def read(text: str) -> dict[str, object]:
    return parse_yaml(text, source="r.yaml").data


def refuse(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, source="r.yaml")
    return str(caught.value)


def test_values_follow_yaml_1_2() -> None:
    text = "a: 1e-4\nb: no\nc: 0o14\nd: 2001-01-01\ne: 0x1F\nf: ~\ng: '5'\nh: true\ni: 1_000\nj: -3\nk:\n"
    assert read(text) == {
        "a": 1e-4,
        "b": "no",
        "c": 12,
        "d": "2001-01-01",
        "e": 31,
        "f": None,
        "g": "5",
        "h": True,
        "i": 1000,
        "j": -3,
        "k": None,
    }


def test_lines_and_places() -> None:
    document = parse_yaml("seed: 0\nstages:\n  - name: a\n    train:\n      heads.region: 1\n", source="r.yaml")
    assert document.place(("stages", 0, "train", "heads.region")) == "r.yaml:5: stages[0].train.heads.region"
    assert document.place(("stages", 0, "absent")) == "r.yaml:3: stages[0].absent"
    assert document.place(()) == "r.yaml:1"


def test_an_odd_key_is_quoted_in_messages() -> None:
    document = parse_yaml('a: {"\\e[31m b": 1}\n', source="r.yaml")
    assert document.place(("a", "\x1b[31m b")) == "r.yaml:1: a.'\\x1b[31m b'"


def test_repeated_key_names_both_lines() -> None:
    assert refuse("seed: 0\nmodel: {}\nseed: 1\n") == "r.yaml:3: key 'seed' stands here and on line 1; keep one of them"


def test_an_alias_may_repeat_a_part_but_not_explode() -> None:
    assert read("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    assert len(bomb) < 1000
    assert "aliases expand to more than" in refuse(bomb)


def test_an_alias_to_itself_is_refused() -> None:
    assert "levels deep" in refuse("a: &a [*a]\n")


@pytest.mark.parametrize("depth", [60, 1000])
def test_deep_nesting_is_refused(depth: int) -> None:
    assert "levels deep" in refuse("a: " + "[" * depth + "]" * depth)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: !!python/object/apply:os.system [echo]\n", "r.yaml:1: found the tag"),
        ("a: 1\nb: !custom x\n", "r.yaml:2: found the tag '!custom'"),
        ("a: !!binary aGVsbG8=\n", "found the tag"),
        ("a: .inf\n", "found .inf, expected a finite number"),
        ("a: 1e999\n", "expected a finite number"),
        ("a: .nan\n", "expected a finite number"),
        ("a: " + "9" * 5000 + "\n", "not a number that can be read"),
        ("a: [1\nb: 2\n", "r.yaml:2: not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML: expected a single document"),
        ("- 1\n", "r.yaml:1: found a list, expected a mapping"),
        ("hello\n", "found 'hello', expected a mapping"),
        ("[1]: 2\n", "as a key, expected a name"),
        ("a: \x01\n", "not YAML"),
    ],
)
def test_refused(text: str, part: str) -> None:
    assert part in refuse(text)


def test_merge_keys_are_no_magic() -> None:
    assert read("a: &x {b: 1}\nc: {<<: *x}\n") == {"a": {"b": 1}, "c": {"<<": {"b": 1}}}


def test_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml: cannot read the recipe \(No such file"):
        read_yaml(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="expected a recipe of at most"):
        read_yaml(tmp_path / "big.yaml")
    (tmp_path / "bom.yaml").write_bytes("\ufeffa: é\n".encode())
    assert read_yaml(tmp_path / "bom.yaml").data == {"a": "é"}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml").data == {}


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=30), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()
    )
)
@example("\x85")
@example("\u2028 \ufeff \x7f \U0001f600 \\ \" '")
@example("null")
@example("1e5")
@example("- a")
def test_written_scalars_read_back(value: object) -> None:
    text = f"a: {_scalar(value)}\nb: [{_scalar(value)}, x]\n"
    assert parse_yaml(text, source="r").data == {"a": value, "b": [value, "x"]}
