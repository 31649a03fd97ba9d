"""Strategies with parameters, addressed by name: ``band(0.4,0.6)``, ``max_probability("a, b")``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import Parameter, signature

from strategies.base import Acquisition, Batch, Chain, QueryStrategy, summary_of
from strategies.pool import StrategyError

FORM = re.compile(r"\s*(\w[\w.-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Factory:
    """Makes a strategy of arguments in its name; every parameter has a default, whose type it takes."""

    name: str
    make: Callable[..., QueryStrategy]

    @property
    def summary(self) -> str:
        """The promise of the strategy in one sentence."""
        return summary_of(self.make)

    @property
    def form(self) -> str:
        """How it is addressed with arguments."""
        parameters = signature(self.make).parameters.values()
        said = ("…" if p.default is Parameter.empty else f"{p.name}={p.default!r}" for p in parameters)
        return f"{self.name}({', '.join(said)})"

    def __call__(self, *arguments: str) -> QueryStrategy:
        """Return the strategy for arguments as text; StrategyError where they don't fit."""
        parameters = list(signature(self.make).parameters.values())
        if parameters and parameters[-1].kind is Parameter.VAR_POSITIONAL:
            return self._named(self.make(*arguments), arguments)
        if len(arguments) > len(parameters):
            raise StrategyError(f"{self.name} takes at most {len(parameters)} arguments: {self.form}.")
        values = []
        for text, parameter in zip(arguments, parameters, strict=False):
            kind = type(parameter.default)
            try:
                values.append(kind(text))
            except ValueError:
                wanted = f"{self.form}: {parameter.name} is a {kind.__name__}, not {text!r}."
                raise StrategyError(wanted) from None
        return self._named(self.make(*values), arguments)

    def _named(self, strategy: QueryStrategy, arguments: tuple[str, ...]) -> QueryStrategy:
        if not isinstance(strategy, Acquisition | Batch | Chain):
            return strategy
        name = f"{self.name}({','.join(arguments)})" if arguments else self.name
        return replace(strategy, name=name, about=self.summary)


def factory(name: str) -> Callable[[Callable[..., QueryStrategy]], Factory]:
    """Make a function ``(parameters with defaults) → strategy`` addressable as ``name(arguments)``."""
    return lambda make: Factory(name, make)


def parse(name: str) -> tuple[str, tuple[str, ...]]:
    """Split ``name(a, b)`` into its bare name and arguments; StrategyError where it is neither form.

    Commas inside brackets or double quotes separate nothing; quotes around an argument are taken off.
    """
    found = FORM.fullmatch(name)
    if found is None:
        raise StrategyError(f"{name!r} is no name of a strategy. Write name or name(argument, …).")
    bare, inside = found.groups()
    return bare, _split(inside, name) if inside and inside.strip() else ()


def _split(text: str, name: str) -> tuple[str, ...]:
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        if not quoted:
            depth += (letter == "(") - (letter == ")")
            if depth < 0:
                break
            if letter == "," and not depth:
                parts.append("")
                continue
        parts[-1] += letter
    if depth or quoted:
        raise StrategyError(f"{name!r} has a bracket or quote without its counterpart.")
    stripped = [part.strip() for part in parts]
    return tuple(p[1:-1] if len(p) > 1 and p[0] == p[-1] == '"' else p for p in stripped)
