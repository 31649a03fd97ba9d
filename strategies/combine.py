"""Put strategies together: shares of a batch, a part of the pool, a quota per class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from strategies import registry
from strategies.base import Batch, Chain, QueryStrategy
from strategies.chains import grouped
from strategies.pool import Mask, Pool, Rows, Signal, Step, StrategyError, probabilities_of
from strategies.rare import column_of
from strategies.spec_parser import factory
from strategies.turns import answered, interleave, turns


def mix(parts: Mapping[str | QueryStrategy, float]) -> QueryStrategy:
    """Give each strategy its share of the batch, evenly interleaved; ``parts`` are strategies or names.

    Which part comes first goes round with the number of answers. Where a chain is among the parts the mix
    follows it, except when another part has its turn. Needs and time are those of the parts together.
    StrategyError for shares that are not above 0, or parts that ask about different items.
    """
    members = [registry.get(part) if isinstance(part, str) else part for part in parts]
    shares = [float(share) for share in parts.values()]
    if not members or not all(0 < share < float("inf") for share in shares):
        raise StrategyError(f"A mix needs strategies with shares above 0, not {dict(parts)}.")
    if len({member.asks for member in members}) > 1:
        raise StrategyError("A mix can't ask about open and labelled items at once.")
    name = f"mix({','.join(f'{m.name}:{s:g}' for m, s in zip(members, shares, strict=True))})"

    def choose(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        own = rng.spawn(len(members))
        orders = [member.order(pool, k, own[n]) for n, member in enumerate(members)]
        return interleave(orders, turns(shares, answered(pool), k), k)

    def step(pool: Pool, step: Step) -> int | None:
        # The order was made before this answer, so its first item belongs to the turn before.
        member = members[int(turns(shares, max(answered(pool) - 1, 0), 1)[0])]
        return member.follow(pool, step) if isinstance(member, Chain) else None

    about = f"Give {', '.join(member.name for member in members)} their shares of the batch."
    needs, uses = _union(m.needs for m in members), _union(m.uses for m in members)
    start = Batch(name, needs, choose, uses, members[0].asks, about)
    if any(isinstance(member, Chain) for member in members):
        return Chain(name, needs, step, start, uses, start.asks, about)
    return start


@factory("mix")
def mix_by_name(*parts: str) -> QueryStrategy:
    """Give several strategies their shares of the batch: mix(uncertainty:0.7,random:0.3).

    Without arguments 70 % uncertainty, 20 % diversity, 10 % random. Good to hedge: no strategy is best
    everywhere, and a random share stays an honest sample. Time: that of its parts.
    """
    shares: dict[str | QueryStrategy, float] = {}
    for part in parts or ("uncertainty:0.7", "diversity:0.2", "random:0.1"):
        name, _, share = part.rpartition(":")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise StrategyError(f"A part of a mix is written name:share, not {part!r}.") from None
    return mix(shares)


@factory("grouped")
def grouped_by_name(strategy: str = "margin") -> QueryStrategy:
    """Ask for the best items of a strategy class by class, so that more of them take one key.

    See ``chains.grouped``. Time: that of the strategy.
    """
    return grouped(registry.get(strategy))


def only(strategy: QueryStrategy, allowed: Callable[[Pool], Mask]) -> QueryStrategy:
    """Let a strategy ask only about items where ``allowed(pool)`` (n,) is true, chains included."""

    def narrowed(pool: Pool) -> Pool:
        mask = np.asarray(allowed(pool))
        if mask.dtype != bool or mask.shape != (len(pool),):
            raise StrategyError(f"only() needs a bool mask ({len(pool)},), not {mask.dtype} {mask.shape}.")
        near = pool.nearest

        def nearest(row: int, k: int) -> Rows:
            assert near is not None  # noqa: S101
            rows = near(row, 4 * k)  # some of them are not allowed
            return rows[mask[rows]][:k]

        return replace(pool, available=pool.available & mask, nearest=None if near is None else nearest)

    def choose(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        return strategy.order(narrowed(pool), k, rng)

    def step(pool: Pool, step: Step) -> int | None:
        return strategy.follow(narrowed(pool), step) if isinstance(strategy, Chain) else None

    name, needs, uses, asks = strategy.name, strategy.needs, strategy.uses, strategy.asks
    start = Batch(name, needs, choose, uses, asks, strategy.summary)
    if isinstance(strategy, Chain):
        return Chain(name, needs, step, start, uses, asks, strategy.summary)
    return start


def quota(strategy: QueryStrategy, shares: Mapping[str | int, float] | None = None) -> QueryStrategy:
    """Share the batch out by suggested class: ``shares`` by name or number, all alike where None.

    Items that are suggested as a class without a share are not asked about. Time: that of the strategy, run
    on the items of each class.
    """

    def choose(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
        p = probabilities_of(pool)
        suggested = p.argmax(axis=1)
        given = shares or dict.fromkeys(np.unique(suggested[pool.available]).tolist(), 1.0)
        columns = [column_of(pool, str(label), p.shape[1]) for label in given]
        own = rng.spawn(len(columns))
        orders = [
            only(strategy, _fixed(suggested == column)).order(pool, k, own[n])
            for n, column in enumerate(columns)
        ]
        return interleave(orders, turns(list(given.values()), answered(pool), k), k)

    needs = _union([strategy.needs, ("probabilities",)])
    about = f"Share the batch of {strategy.name} out by suggested class."
    return Batch(f"quota({strategy.name})", needs, choose, strategy.uses, strategy.asks, about)


def _fixed(mask: Mask) -> Callable[[Pool], Mask]:
    return lambda pool: mask


def _union(signals: Iterable[tuple[Signal, ...]]) -> tuple[Signal, ...]:
    return tuple(dict.fromkeys(signal for some in signals for signal in some))


registry.register("combined", mix_by_name)
registry.register("combined", grouped_by_name)
