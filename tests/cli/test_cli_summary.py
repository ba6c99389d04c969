"""The tables at the end of `tpo train` and `tpo eval`."""

from __future__ import annotations

import pytest

from tpo_core.cli.progress import print_summary

STAGE = {"heads": {"box": {"acc": 0.25}}, "conversation": {"qa": 0.5}, "assignment": {"right": 0.625, "blind": 0.25, "sources": {}}}
SUMMARY = {
    "heads": {"box": {"acc": 0.75}},
    "chance": {"box": {"acc": 0.125}},
    "primary": {"box": "acc"},
    "conversation": {"qa": 0.5},
    "blind": {"qa": 0.375},
    "assignment": {"right": 0.875, "blind": 0.25, "sources": {"qa": 1.0, "unseen": 0.8125}},
    "stages": {"first": STAGE},
}


def lines(capsys: pytest.CaptureFixture[str], summary: dict) -> list[str]:
    print_summary(summary)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_assignment_is_told_of_each_source(capsys):
    told = lines(capsys, SUMMARY)
    for line in (
        "box acc 0.750 0.125",
        "qa 0.500 0.375",
        "qa 1.000",
        "unseen 0.812",
        "all questions 0.875 0.250",
        "right head called 0.625",
    ):
        assert line in told


def test_a_summary_without_it_is_shown_as_well(capsys):
    """Of a run that was made before, or that nothing was asked of."""
    told = lines(capsys, {**SUMMARY, "assignment": {}, "stages": {"first": {key: STAGE[key] for key in ("heads", "conversation")}}})
    assert "right head called -" in told
    assert not any(line.startswith("all questions") for line in told)
