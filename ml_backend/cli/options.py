"""The kinds of values that options take, one for each idea: what is out of range is refused in a line."""

from __future__ import annotations

import math
from typing import Any

import click


class Number(click.FloatRange):
    """A number in a range; NaN and infinity, which comparisons let through, are none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; BadParameter names what it is not."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Share(Number):
    """A part of a whole, from 0 to 1."""

    name = "share"

    def __init__(self, *, some: bool = False, less_than_all: bool = False) -> None:
        super().__init__(0, 1, min_open=some, max_open=less_than_all)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share; BadParameter says how one is written."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')}: it is a share, and 1 % is 0.01.", param, ctx)


SHARE = Share()
SOME = Share(some=True)
PROPER = Share(some=True, less_than_all=True)
"""Neither nothing nor everything: what may be wrong, how sure somebody wants to be."""
NOT_ALL = Share(less_than_all=True)
SECONDS = Number(0)
COUNT = click.IntRange(1)
PORT = click.IntRange(1, 65535)
PROJECT = click.IntRange(1)
"""The id of a project."""
