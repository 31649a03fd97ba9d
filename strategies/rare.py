"""Find items of classes that are rare or have few labels yet. O(n C) each."""

from __future__ import annotations

import difflib

from strategies.base import QueryStrategy, acquisition
from strategies.pool import Pool, Scores, StrategyError, probabilities_of
from strategies.spec_parser import factory


@factory("max_probability")
def max_probability(label: str = "") -> QueryStrategy:
    """Ask about the items likeliest to be of one class (name, number, else the one with fewest labels).

    p(class) (certainty-based search of rare positives, Attenberg & Provost 2010). Good where one class is
    rare and wanted.
    """

    @acquisition("max_probability", needs="probabilities")
    def score(pool: Pool) -> Scores:
        p = probabilities_of(pool)
        column: Scores = p[:, column_of(pool, label, p.shape[1])]
        return column

    return score


@acquisition("minority", needs="probabilities")
def minority(pool: Pool) -> Scores:
    """Ask about items that are likely of classes with few labels, the rarest first.

    Σ p(c) / (1 + labels of c). Good for skewed data while some classes have only a handful of labels.
    """
    p = probabilities_of(pool)
    rarity: Scores = p @ (1.0 / (1.0 + pool.per_class(p.shape[1])))
    return rarity


def column_of(pool: Pool, label: str, count: int) -> int:
    """Return the column of a class by name, number or, for "", fewest labels; StrategyError for no such."""
    names = pool.classes or ()
    if label in names:
        return names.index(label)
    if not label:
        return int(pool.per_class(count).argmin())
    if label.isdecimal() and int(label) < count:
        return int(label)
    close = difflib.get_close_matches(label, names, 1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    there = ", ".join(names) if names else f"numbers from 0 to {count - 1}"
    raise StrategyError(f"There is no class {label!r}.{meant} There are: {there}.")
