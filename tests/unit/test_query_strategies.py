"""What each strategy promises, on pools small enough to see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from strategies import Chain, Pool, Step, StrategyError, UnknownStrategy, auto, clusters, improvement, turns
from strategies.chains import FEWEST, LABELS_PER_ITEM, MOST
from strategies.coverage import badge
from strategies.outliers import oddity_lof
from strategies.spec_parser import parse
from strategies.uncertainty import places


def pool(n: int, labels: dict[int, int] | None = None, **signals: Any) -> Pool:
    """``n`` items, of which those in ``labels`` hold an answer."""
    answers = np.full(n, -1)
    for row, answer in (labels or {}).items():
        answers[row] = answer
    signals = {
        key: np.asarray(value, np.float32) if isinstance(value, list) else value
        for key, value in signals.items()
    }
    vectors = signals.pop("vectors", None)
    return Pool(vectors, answers < 0, answers >= 0, answers, **signals)


def order(name: str, items: Pool, k: int = 100, seed: int = 0) -> list[int]:
    rows: list[int] = strategies.select(name, items, k, seed).rows.tolist()
    return rows


def blobs(sizes: list[int], seed: int = 0, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in well separated groups, and the group of each."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.eye(16)[group] + spread * rng.standard_normal((len(group), 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), group


P = [[0.9, 0.1, 0.0], [0.4, 0.35, 0.25], [0.5, 0.5, 0.0], [0.6, 0.2, 0.2]]


def test_the_three_uncertainties_differ_where_their_formulas_do() -> None:
    items = pool(4, probabilities=P)
    assert order("least_confidence", items) == [1, 2, 3, 0]
    assert order("margin", items) == [2, 1, 3, 0]
    assert order("uncertainty", items) == [1, 3, 2, 0]


def test_information_density_prefers_the_crowd_where_all_are_equally_unsure() -> None:
    vectors, _ = blobs([30, 1], spread=0.1)
    items = pool(31, vectors=vectors, probabilities=[[0.5, 0.5]] * 31)
    assert order("information_density", items, 31)[-1] == 30
    assert order("information_density(3)", items, 31)[-1] == 30
    with pytest.raises(UnknownStrategy, match="beta"):
        strategies.get("information_density(-1)")


def test_balanced_takes_turns_by_class_and_starts_with_the_one_of_fewest_labels() -> None:
    p = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]]
    assert order("balanced", pool(7, {5: 0, 6: 0}, probabilities=p)) == [3, 4, 2, 1, 0]


def test_band_and_certain_ask_about_nothing_else() -> None:
    items = pool(4, probabilities=P)
    assert set(order("band(0.4,0.5)", items)) == {1, 2}
    assert order("certain(0.6)", items) == [0, 3]
    assert order("certain", items) == []
    for bad in ("band(0.6,0.4)", "band(0,2)", "certain(1.5)", "certain(x)"):
        with pytest.raises(UnknownStrategy, match=bad.partition("(")[0]):
            strategies.get(bad)


def test_a_rare_class_is_searched_by_name_by_number_or_because_it_has_fewest_labels() -> None:
    items = pool(4, {0: 0}, probabilities=P, classes=("cat", "dog", "a, b"))
    assert order("max_probability(dog)", items) == [2, 1, 3]
    assert order('max_probability("a, b")', items) == order("max_probability(2)", items) == [1, 3, 2]
    assert order("max_probability", items) == [2, 1, 3]
    with pytest.raises(StrategyError, match="Did you mean 'dog'"):
        order("max_probability(dgo)", items)


def test_minority_weighs_classes_by_how_few_labels_they_have() -> None:
    p = [[1, 0, 0], [0, 1, 0], [0, 0, 1], *[[0.3, 0.3, 0.4]] * 3]
    assert order("minority", pool(6, {3: 0, 4: 0, 5: 1}, probabilities=p)) == [2, 1, 0]


@pytest.mark.parametrize("name", ["kmeans", "typiclust", "probcover", "diversity"])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_as_large_as_there_are_groups_has_one_of_each(name: str, seed: int) -> None:
    vectors, group = blobs([60, 40, 30, 20, 20], seed)
    items = pool(170, vectors=vectors, classes=tuple("abcde"))
    assert len(set(group[order(name, items, 5, seed)])) == 5


@pytest.mark.parametrize("name", ["typiclust", "probcover", "diversity"])
def test_groups_with_a_label_are_left_for_those_without(name: str) -> None:
    vectors, group = blobs([60, 40, 30])
    items = pool(130, {0: 0, 60: 1}, vectors=vectors)
    assert group[order(name, items, 1)] == [2]


def test_badge_chooses_as_if_the_gradients_were_there() -> None:
    rng = np.random.default_rng(1)
    p, head = rng.dirichlet(np.ones(4), 50), rng.standard_normal((50, 6)).astype(np.float32)
    items = pool(50, vectors=head, head=head, probabilities=p)
    error = p - np.eye(4)[p.argmax(axis=1)]
    gradients = np.einsum("nc,nh->nch", error, head).reshape(50, -1)
    generator = np.random.default_rng(7)
    chosen = [int((gradients**2).sum(axis=1).argmax())]
    while len(chosen) < 12:
        far = ((gradients[:, None] - gradients[chosen]) ** 2).sum(axis=2).min(axis=1)
        found = clusters.draw(far.astype(np.float32), generator)
        assert found is not None
        chosen.append(found)
    assert badge.order(items, 12, np.random.default_rng(7)).tolist() == chosen


@pytest.mark.parametrize("name", ["oddity_lof", "oddity_forest"])
def test_planted_oddities_come_first(name: str) -> None:
    vectors, _ = blobs([300, 300])
    strange = np.random.default_rng(3).standard_normal((4, 16)).astype(np.float32)
    vectors[[5, 100, 400, 500]] = strange / np.linalg.norm(strange, axis=1, keepdims=True)
    assert set(order(name, pool(600, vectors=vectors), 4)) == {5, 100, 400, 500}


def test_lof_orders_as_scikit_learn_does() -> None:
    from sklearn.neighbors import LocalOutlierFactor

    vectors = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    theirs = LocalOutlierFactor(20).fit(vectors).negative_outlier_factor_.argsort()
    ours = oddity_lof.order(pool(200, vectors=vectors), 200, np.random.default_rng(0))
    places_of = np.empty(200)
    places_of[ours] = np.arange(200)
    assert np.corrcoef(places_of[theirs], np.arange(200))[0, 1] > 0.99


def test_mislabel_finds_planted_wrong_labels_and_nothing_where_all_agree() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 90)
    p = 0.8 * np.eye(3)[truth] + 0.2 * rng.dirichlet(np.ones(3), 90)
    given = truth.copy()
    given[[4, 50]] = (truth[[4, 50]] + 1) % 3
    items = replace(pool(90, dict(enumerate(given.tolist())), probabilities=p), available=np.ones(90, bool))
    assert set(order("mislabel", items)) == {4, 50}
    assert order("mislabel", replace(items, answers=truth)) == []
    assert "labels" in str(strategies.select("mislabel", pool(3, probabilities=P[:3]), 2).fallback)


def test_rush_takes_the_cheaper_of_two_alike_and_believes_measured_seconds() -> None:
    vectors, _ = blobs([20])
    items = pool(20, vectors=vectors, probabilities=[[0.6, 0.4]] * 20)
    seconds = np.full(20, 4.0, np.float32)
    seconds[7] = 0.5
    assert order("rush", replace(items, seconds=seconds), 1) == [7]
    np.testing.assert_allclose(
        improvement.seconds_of(pool(2, probabilities=[[1.0, 0.0], [0.5, 0.5]]), np.arange(2)), [1.26, 2.21]
    )


def test_rush_learns_in_the_unknown_crowd_before_it_asks_about_known_ones_and_outliers() -> None:
    vectors, group = blobs([200, 200, 1])
    labels = dict.fromkeys(range(200, 260), 0)
    p = np.where((group == 1)[:, None], [0.9, 0.1], [0.55, 0.45])
    first = order("rush", pool(401, labels, vectors=vectors, probabilities=p), 20)
    assert set(group[first]) == {0}


def test_rush_spreads_over_crowds_that_are_alike() -> None:
    vectors, group = blobs([100, 100, 100, 100])
    first = order("rush", pool(400, vectors=vectors, probabilities=np.full((400, 2), 0.5)), 16)
    assert set(Counter(group[first]).values()) <= {2, 3, 4, 5, 6}
    assert len(set(group[first])) == 4


@pytest.mark.parametrize("name", ["rush", "grouped(margin)"])
def test_a_batch_is_asked_class_by_class_among_the_best_ranked_only(
    name: str,
) -> None:
    items = pool(40, {0: 0, 1: 1}, vectors=blobs([20, 20])[0], probabilities=np.full((40, 2), 0.5))
    strategy = strategies.get(name)
    assert isinstance(strategy, Chain)
    ranked = strategy.order(items, 40, np.random.default_rng(0)).tolist()
    guess = {row: (int(place % 4 == 3), 0.5) for place, row in enumerate(ranked)}
    assert strategy.follow(items, Step(0, [], guess.__getitem__, ranked)) == ranked[0]
    assert strategy.follow(items, Step(1, [], guess.__getitem__, ranked)) == ranked[3]
    late = {row: (int(place == FEWEST), 0.5) for place, row in enumerate(ranked)}
    assert strategy.follow(items, Step(1, [], late.__getitem__, ranked)) is None


def test_a_batch_grows_with_the_labels_up_to_a_limit() -> None:
    labels = LABELS_PER_ITEM * MOST * 2
    n = labels + MOST + 1
    strategy = strategies.get("grouped(margin)")
    assert isinstance(strategy, Chain)
    ranked = list(range(labels, n))
    for known, size in ((LABELS_PER_ITEM * 20, 20), (labels, MOST)):
        items = pool(n, dict.fromkeys(range(known), 0), probabilities=np.full((n, 2), 0.5))
        for place, found in ((size - 1, ranked[size - 1]), (size, None)):
            guess = {row: (int(row != ranked[place]), 0.5) for row in ranked}
            assert strategy.follow(items, Step(0, [], guess.__getitem__, ranked)) == found


# ---- auto


def world(answered: int, right: float | None, regions: int = 3, n: int = 600) -> Pool:
    """``answered`` labels spread over all regions, whose suggestions were right so often."""
    vectors, group = blobs([n // regions] * regions)
    rows = np.random.default_rng(5).permutation(n)[:answered]
    labels = {int(row): int(group[row]) for row in rows}
    agreed = np.full(n, np.nan, np.float32)
    agreed[rows] = np.arange(answered) >= answered * (1 - (right or 0))
    p = np.full((n, regions), 0.1)
    p[np.arange(n), group] = 1 - 0.1 * (regions - 1)
    return pool(
        n,
        labels,
        vectors=vectors,
        probabilities=p,
        clusters=group.astype(np.int32),
        density=np.linspace(0, 1, n, dtype=np.float32),
        agreed=agreed if right is not None else None,
    )


def test_auto_goes_from_typical_over_chains_and_uncertain_items_to_verifying() -> None:
    assert auto.phase(world(0, None)) == "typical"
    assert auto.phase(world(9, 0.5)) == "chain"
    assert auto.phase(world(60, 0.5)) == "uncertain"
    assert auto.phase(world(300, 1.0)) == "verify"
    assert auto.phase(world(60, None)) == "uncertain"  # not measured is not right
    unseen = world(60, 1.0)
    clusters = np.asarray(unseen.clusters).copy()
    clusters[np.flatnonzero(unseen.available)[:5]] = 3
    assert auto.phase(replace(unseen, clusters=clusters)) == "typical"


def test_auto_follows_chains_only_where_it_is_in_a_chain_or_verifies() -> None:
    strategy = strategies.get("auto")
    assert isinstance(strategy, Chain)
    for answered, follows in ((9, True), (60, False), (300, True)):
        items = world(answered, 1.0 if answered == 300 else 0.5)
        row = int(np.flatnonzero(items.labelled)[0])
        found = strategy.follow(items, Step(row, [], lambda candidate: (int(items.answers[row]), 0.9)))  # noqa: B023
        assert (found is not None) == follows


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("auto", 0.05), ("mix(uncertainty:0.8,random:0.2)", 0.2)])
def test_a_share_is_kept_by_a_queue_that_is_made_anew_after_every_answer(name: str, share: float) -> None:
    items = world(60, 0.5)
    others = {"auto": "rush", "mix(uncertainty:0.8,random:0.2)": "uncertainty"}[name]
    strange = 0
    for _ in range(100):
        row = order(name, items, 10)[0]
        strange += row != order(others, items, 10)[0]
        answers, available = items.answers.copy(), items.available.copy()
        answers[row], available[row] = 0, False
        items = replace(items, answers=answers, available=available)
    # Uncertain items are all alike here, so mostly only the random ones differ.
    assert strange >= 100 * share


def test_the_control_is_an_honest_sample_whatever_else_is_asked() -> None:
    items = world(0, None)
    draw = np.random.default_rng(0).random(len(items))
    first = np.argsort(draw)[:30]
    agreed = np.full(len(items), np.nan, np.float32)
    agreed[:300], agreed[first] = 0.0, 1.0
    labelled = np.isfinite(agreed)
    items = replace(
        items, labelled=labelled, available=~labelled, agreed=agreed, answers=np.where(labelled, 0, -1)
    )
    control = labelled & (draw < draw[~labelled].min())
    assert auto.rightness(items) == pytest.approx((agreed[control].sum() + 1) / (control.sum() + 2))
    assert auto.rightness(items) > 0.9


# ---- names and combinations


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bnad(0.3)", "Did you mean 'band\\(0.3\\)'"),
        ("margin(2)", "no arguments"),
        ("band(1,2,3)", "at most 2 arguments: band\\(low=0.4, high=0.6\\)"),
        ("band(0.4", "no name of a strategy"),
        ("mix(random:1))", "bracket"),
        ("mix(random)", "name:share"),
        ("mix(random:0)", "above 0"),
        ("mix(random:nan)", "above 0"),
        ("mix(random:1,mislabel:1)", "open and labelled"),
        ("mix(rnadom:1)", "Did you mean 'random'"),
        ("", "no name"),
    ],
)
def test_a_name_that_fits_nothing_says_what_is_wrong(name: str, said: str) -> None:
    with pytest.raises(UnknownStrategy, match=said):
        strategies.get(name)


@given(st.lists(st.text("abc0,.() ", max_size=6), min_size=1, max_size=3))
def test_quoted_arguments_come_through_as_they_are(arguments: list[str]) -> None:
    quoted = ", ".join(f'"{argument}"' for argument in arguments)
    assert parse(f"name({quoted})") == ("name", tuple(arguments))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 3000), st.integers(0, 60))
def test_turns_keep_to_the_shares_at_every_moment(weights: list[int], first: int, count: int) -> None:
    taken = turns.turns(weights, first, count)
    assert len(taken) == count
    every = turns.turns(weights, 0, first % turns.PERIOD + count)
    assert (every[first % turns.PERIOD :] == taken).all()
    share = np.array(weights) / sum(weights)
    given_ = np.bincount(every, minlength=len(weights))
    assert (np.abs(given_ - share * len(every)) <= len(weights)).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), max_size=30))
def test_places_count_down_the_scores_of_each_group(items: list[tuple[int, float]]) -> None:
    groups, scores = np.array([g for g, _ in items], np.int64), np.array([s for _, s in items])
    found = places(groups, scores)
    for n, (group, score) in enumerate(items):
        higher = sum(1 for g, s in items if g == group and s > score)
        alike = sum(1 for g, s in items if g == group and s == score)
        assert higher <= found[n] < higher + alike


def test_a_mix_follows_its_chain_except_when_another_part_has_its_turn() -> None:
    mixed = strategies.mix({"cluster_chain": 0.5, "random": 0.5})
    assert isinstance(mixed, Chain)
    items = world(9, 0.5)
    followed = []
    for _ in range(4):
        row = int(np.flatnonzero(items.labelled)[0])
        found = mixed.follow(items, Step(row, [], lambda candidate: (int(items.answers[row]), 0.9)))  # noqa: B023
        followed.append(found is not None)
        answers = items.answers.copy()
        answers[np.flatnonzero(answers < 0)[0]] = 0
        items = replace(items, answers=answers)
    assert sorted(followed) == [False, False, True, True]


def test_only_keeps_to_the_mask_in_the_order_and_in_chains() -> None:
    items = world(9, 0.5)
    first = strategies.only(strategies.get("cluster_chain"), lambda pool: np.arange(len(pool)) < 50)
    assert isinstance(first, Chain)
    rows = first.order(items, 100, np.random.default_rng(0))
    assert set(rows.tolist()) == set(np.flatnonzero(items.available)[:50].tolist()) & set(range(50))
    row = int(np.flatnonzero(items.labelled)[-1])
    asked = replace(items, nearest=lambda row, k: items.neighbours(row, k))
    for one in (items, asked):
        found = first.follow(one, Step(row, [], lambda candidate: (int(items.answers[row]), 0.9)))
        assert found is None or found < 50
    with pytest.raises(StrategyError, match="bool mask"):
        strategies.only(strategies.get("random"), lambda pool: np.zeros(2)).order(
            items, 3, np.random.default_rng(0)
        )


def test_a_quota_shares_the_batch_out_by_suggested_class() -> None:
    items = replace(world(9, 0.5), classes=("a", "b", "c"))
    suggested = np.asarray(items.probabilities).argmax(axis=1)
    fair = strategies.quota(strategies.get("random"))
    assert Counter(suggested[fair.order(items, 30, np.random.default_rng(0))]) == {0: 10, 1: 10, 2: 10}
    mostly = strategies.quota(strategies.get("random"), {"a": 3, "c": 1})
    assert Counter(suggested[mostly.order(items, 40, np.random.default_rng(0))]) == {0: 30, 2: 10}
    with pytest.raises(StrategyError, match="no class 'd'"):
        strategies.quota(strategies.get("random"), {"d": 1}).order(items, 4, np.random.default_rng(0))


def test_near_duplicates_wait_behind_all_others() -> None:
    vectors = np.eye(16, dtype=np.float32)[[0, 0, 1, 0, 2]]
    items = pool(
        5, vectors=vectors, probabilities=[[0.5, 0.5], [0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]]
    )
    assert order("least_confidence", items) == [0, 2, 4, 1, 3]


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_says_in_one_line_what_it_does(name: str) -> None:
    summary = strategies.get(name).summary
    assert summary.endswith(".")
    assert 20 < len(summary) < 110
    assert sum(name in [m.name for m in members] for members in strategies.families().values()) == 1
