"""Every option refuses what is out of its range, in a line that names option and value."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from ml_backend.cli.main import COMMANDS, main
from ml_backend.cli.options import Number


def options() -> Iterator[tuple[str, click.Option]]:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        for each in command.params:
            if isinstance(each, click.Option):
                yield name, each


def numbers() -> list[tuple[str, click.Option]]:
    return [
        (name, option)
        for name, option in options()
        if isinstance(option.type, Number | click.IntRange) and not option.is_flag
    ]


def test_every_number_has_a_range() -> None:
    bare = [
        f"{name} {option.opts[0]}"
        for name, option in options()
        if option.type in (click.INT, click.FLOAT) or type(option.type) is click.FloatRange
    ]
    assert bare == []
    assert len(numbers()) > 25


@pytest.mark.parametrize("value", ["-5", "nan", "inf", "-inf", "text", ""])
@pytest.mark.parametrize(("name", "option"), numbers(), ids=lambda it: getattr(it, "name", it))
def test_what_is_no_such_number_is_refused(name: str, option: click.Option, value: str) -> None:
    result = CliRunner().invoke(main, [name, option.opts[0], value])
    assert result.exit_code == 2
    error = result.output.strip().splitlines()[-1]
    assert f"Invalid value for '{option.opts[0]}'" in error


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("audit", "--error", "1.5"), "'--error': 1.5 is not in the range 0<x<1: it is a share"),
        (("audit", "--error", "0"), "'--error': 0.0 is not in the range 0<x<1"),
        (("audit", "--confidence", "95"), "'--confidence': 95.0 is not in the range 0<x<1"),
        (("audit", "--share", "0"), "'--share': 0.0 is not in the range 0<x<=1"),
        (("audit", "--surest", "101"), "'--surest': 101.0 is not in the range 0<x<=1"),
        (("audit", "--count", "0"), "'--count': 0 is not in the range x>=1"),
        (("audit", "--more", "1.5"), "'--more': '1.5' is not a valid integer range"),
        (
            ("certify", "--human-error", "-5"),
            "'--human-error': -5.0 is not in the range 0<=x<1: it is a share",
        ),
        (("certify", "--human-error", "101"), "'--human-error': 101.0 is not in the range 0<=x<1"),
        (("certify", "--human-error", "nan"), "'--human-error': nan is not a finite number: it is a share"),
        (("simulate", "--until", "101"), "'--until': 101.0 is not in the range 0<=x<=1"),
        (("simulate", "--page-seconds", "inf"), "'--page-seconds': inf is not a finite number"),
        (("demo", "--port", "99999999"), "'--port': 99999999 is not in the range 1<=x<=65535"),
        (("train", "--project", "0"), "'--project': 0 is not in the range x>=1"),
    ],
)
def test_the_line_says_what_the_range_is(words: tuple[str, ...], problem: str) -> None:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 2
    assert problem in " ".join(result.output.split())


@pytest.mark.parametrize("cost", ["-1", "nan", "inf", "cheap", "project:", "project:-1"])
def test_a_cost_that_is_none_is_named(cost: str) -> None:
    result = CliRunner().invoke(main, ["simulate", "--cost", cost])
    assert result.exit_code == 1
    assert f"--cost {cost} is no cost. Use published" in " ".join(result.output.split())
