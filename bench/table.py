"""The figures of bench/results as the tables of README.md, docs/strategies.md and docs/million.md.

python bench/table.py prints them, with --write they are put between the marks of these files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def load(name: str) -> dict[str, Any]:
    """The figures of one benchmark, empty where it has not run."""
    path = RESULTS / f"{name}.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    return figures


def rows() -> Iterator[tuple[str, str, str]]:
    """(what, measured, goal) of every benchmark that has run."""
    submits = load("submit")
    for name, one in submits.items():
        if name == "web process":
            count = sum(row.get("annotations", 0) for row in submits.values())
            yield (
                f"web process, 11,000 images in two projects, after {count:,} submits",
                f"{one['resident_mb']} MB resident, {'with' if one['torch'] else 'no'} torch",
                "≤ 300 MB, no torch",
            )
            continue
        order, _, where = name.partition(" ")
        yield (
            f"submit → next, `{order}` {where}, {one['annotations']} answers",
            f"+{one['added_median_of_pairs_ms']:.0f} ms (median of pairs), "
            f"{one['with_ms']['p50']:.0f} ms in all; "
            f"intended next task {one['hit_rate']:.1%}",
            "+80 ms, 100 %",
        )
    if browser := load("browser"):
        rush, alone = browser["with_rush"], browser["label_studio_alone"]
        yield (
            f"real browser, {browser['images']} digits by keys: key press to next image",
            f"{rush['key_to_next_image_ms']['p50']:.0f} ms against "
            f"{alone['key_to_next_image_ms']['p50']:.0f} alone (× {browser['ratio_p50']:.2f}), "
            f"{rush['images_per_minute']:.0f} images a minute, "
            f"{rush['accepted_with_one_key']:.0%} accepted with one key",
            "× 1.2",
        )
    for key, name in (("photographs_640x480", "640×480 photographs"), ("small_32x32", "small images")):
        if one := load("ingest").get(key):
            yield (
                f"ingest of {one['images']:,} {name}",
                f"{one['images_per_second']['fast']:.0f} images/s, × {one['ratio']:.1f} of the plain loop; "
                f"cosine of features {one['cosine_mean']:.4f}"
                + (
                    f"; 10-NN {one['knn10_accuracy']} % against {one['knn10_accuracy_plain']} %"
                    if "knn10_accuracy" in one
                    else ""
                ),
                "× 4, 0.998",
            )
    for size, one in load("index").items():
        search = one["search"]
        yield (
            f"filtered 50 nearest of {int(size):,}, embedded Qdrant",
            f"{search['index_ms']['p50']} / {search['index_ms']['p95']} ms (p50/p95), "
            f"recall {search['recall']}",
            "p95 ≤ 2 ms",
        )
    if learning := load("learning"):
        round_, maps = learning["training"], learning["map"]
        yield (
            f"training round, {round_['labels']:,} labels, {round_['images']:,} images",
            f"{round_['seconds']:.1f} s with held-out figures, re-embedding and publishing",
            "3 s",
        )
        for key, name in (("first", "first map"), ("again", "map again")):
            yield (
                f"{name} of {maps['images']:,} images",
                f"{maps[key]['seconds']:.1f} s, trustworthiness {maps[key]['trustworthiness']:.3f}",
                f"{maps[key]['goal_seconds']} s, 0.91",
            )


def suggestions() -> Iterator[str]:
    """Accuracy of the suggestions by data set and labels."""
    for name, table in load("learning").get("suggestions", {}).items():
        for labels, row in table.items():
            yield (
                f"| {name} | {labels} | {row['knn-raw']:.1%} | {row['knn-head']:.1%} | {row['head']:.1%} "
                f"| {row['blend']:.1%} | **{row['chosen']:.1%}** | {row['chosen held out']:.1%} |"
            )


def tables() -> str:
    """Both tables as Markdown."""
    lines = ["| what | measured | goal |", "|---|---|---|"]
    lines += [f"| {what} | {measured} | {goal} |" for what, measured, goal in rows()]
    accuracy = list(suggestions())
    if accuracy:
        lines += ["", "Accuracy of suggestions on images without a label, by random labels given:", ""]
        lines += ["| data | labels | kNN raw | kNN head | head | both | chosen | as held out |"]
        lines += ["|---|---|---|---|---|---|---|---|", *accuracy]
    return "\n".join(lines)


def simulated() -> Iterator[str]:
    """What simulated annotators got, by data set, best accuracy over time first."""
    found = load("simulate")
    for data in sorted({row["data"] for row in found.get("summary", ())}):
        mine = [row for row in found["summary"] if row["data"] == data]
        name = data.partition("-")[0].upper()
        yield f"**{name}**, {mine[0]['labels']:.0f} answers, {mine[0]['seeds']} seeds:"
        yield ""
        yield "| strategy | minutes | held-out | whole pool right | accuracy over time | accepted |"
        yield "|---|---|---|---|---|---|"
        for row in mine:
            yield (
                f"| `{row['strategy']}` | {row['minutes']:.1f} | {_percent(row, 'held_out')} | "
                f"{_percent(row, 'pool')} | {_percent(row, 'area')} | {row['accepted']:.0%} |"
            )
        yield ""


def _percent(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[name]:.1f} ± {100 * row[name + '_ci']:.1f} %"


def certified() -> Iterator[str]:
    """Annotator minutes until a whole data set is labelled, with the machine and by hand."""
    found = load("certify")
    if not found:
        return
    yield "### Until everything is labelled and certified"
    yield ""
    yield "10,000 images (`bench/certify.py`, 95 % confidence; at most 1 % of all labels wrong, 10 % of"
    yield "CIFAR-10's): minutes are those of the labels, of the audits and of what is left to people."
    yield "A set of labels is what the strategy asks for with the images in another order; each has a network"
    yield "of its own and several audit samples. What one costs is decided by how many of its few"
    yield "hundred audits happen to be wrong, none of them or three."
    yield ""
    yield "| data | way | minutes | answers | taken over | labels right | certified |"
    yield "|---|---|---|---|---|---|---|"
    ways: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in found["runs"]:
        after = " and ".join(map(str, run["tuned"]))
        tuned = f"fine-tuned after {after}" if after else "heads only"
        way = f"{run['data'].upper()} | `{run['strategy']}`, {run['marks']['labels'][0]} labels, {tuned}"
        ways.setdefault(way, {}).setdefault(f"{way}, set {run['set'] + 1}", []).append(run)
    for way, sets in ways.items():
        if len(sets) > 1:
            yield _certified_row(f"{way}, **all {len(sets)} sets**", list(chain(*sets.values())))
        for name, runs in sets.items():
            yield _certified_row(name, runs)
    for row in found["by_hand"]:
        seen = "with suggestions" if row.get("suggestions", True) else "without suggestions"
        yield (
            f"| {row['data'].upper()} | by hand, `{row['strategy']}`, {seen} | {row['minutes']:.0f} "
            f"| 10,000 | 0 | 100% | |"
        )
    yield ""
    yield "Wrong suggestions among all open images but the last so many, ordered by confidence alone and as"
    yield "draws are (`strategies/audits/trust.py`):"
    yield ""
    firsts = {name: runs[0]["order"] for sets in ways.values() for name, runs in sets.items()}
    lasts = list(next(iter(firsts.values())))
    yield f"| | | {' | '.join(f'all but {last}' if int(last) else 'all' for last in lasts)} |"
    yield f"|---|---|{'---|' * len(lasts)}"
    for way, order in firsts.items():
        for number, name in enumerate(("confidence", "draw")):
            counts = " | ".join(str(order[last][number]) for last in lasts)
            yield f"| {way.replace(' | ', ', ')} | {name} | {counts} |"
    yield ""


def _certified_row(way: str, runs: list[dict[str, Any]]) -> str:
    minutes = [run["minutes"] for run in runs]
    spread = f", {min(minutes):.1f} to {max(minutes):.1f}" if len(runs) > 1 else ""
    stages = [[run["marks"][stage][1] / 60 for run in runs] for stage in ("labels", "audits", "rest")]
    parts = " + ".join(f"{np.mean(part):.1f}" for part in np.diff(stages, axis=0, prepend=0))
    return (
        f"| {way}, {len(runs)} audit sample{'s' if len(runs) > 1 else ''} "
        f"| **{np.mean(minutes):.1f}** ({parts}){spread} "
        f"| {np.mean([run['marks']['rest'][0] for run in runs]):,.0f} "
        f"| {np.mean([run['accepted'] for run in runs]):,.0f} "
        f"| {min(run['right'] for run in runs):.2%} or more "
        f"| ≤ {max(run['certified_error'] for run in runs):.2%} of all wrong |"
    )


def beside_peers() -> Iterator[str]:
    """Accuracy and seconds beside other libraries' strategies in the same loop."""
    found = load("peers")
    if not found:
        return
    sets, sizes = list(found["accuracy"]), list(found["seconds per query of 100"])
    heads = [f"{name.partition('-')[0].upper()}, mean of 20 to 200 labels" for name in sets]
    heads += [f"seconds, {int(size):,} items" for size in sizes]
    yield f"| strategy | by | {' | '.join(heads)} |"
    yield "|---" * (2 + len(heads)) + "|"
    for family, peers in found["accuracy"][sets[0]].items():
        for peer in peers:
            accuracy = [found["accuracy"][name][family][peer]["mean of 20 to 200"] for name in sets]
            seconds = [found["seconds per query of 100"][size][family][peer] for size in sizes]
            cells = [f"{mean:.1f} ± {half:.1f} %" for mean, half in accuracy]
            yield f"| {family} | {peer} | {' | '.join(cells + [f'{value:.3g}' for value in seconds])} |"


def selection() -> Iterator[str]:
    """Seconds and memory of every strategy by size of the pool."""
    found = load("selection")
    if not found:
        return
    sizes = list(found)
    yield "| strategy | " + " | ".join(f"{int(size):,} items" for size in sizes) + " |"
    yield "|---" * (1 + len(sizes)) + "|"
    for name in found[sizes[0]]:
        cells = [
            f"{one['s']:.3g} s, {one['peak_mb']:.0f} MB" if (one := found[size].get(name)) else "–"
            for size in sizes
        ]
        yield f"| `{name}` | {' | '.join(cells)} |"


def strategy_tables() -> str:
    """The figures of docs/strategies.md as Markdown."""
    lines = [
        "### Per annotator second",
        "",
        "Simulated people (`bench/simulate.py`, the product's own loop): 0.6 s to confirm an image of the",
        "class before, 2.5 s otherwise, 0.66 s for the page; ± is a 95 % interval over seeds.",
        "",
        *simulated(),
        *certified(),
        "### Beside scikit-activeml and modAL",
        "",
        "The same loop, classifier and seeds for all (`bench/peers.py`): mean held-out accuracy from 20 to",
        "200 labels, and seconds for a query of 100 on one core.",
        "",
        *beside_peers(),
        "",
        "### Time and memory",
        "",
        "A query of 100, 64 dimensions, 10 classes, one process each (`bench/selection.py`).",
        "",
        *selection(),
    ]
    return "\n".join(lines)


def million() -> str:
    """The figures of docs/million.md as Markdown."""
    found = load("million")
    if not found:
        return ""
    web, worker = found["web"], found["worker"]
    rows = [
        ("web process: start, with its index", f"{web['start_s']:.0f} s", ""),
        *(
            (
                f"submit, our compute, `{name}`",
                f"{web[name]['submit_ms']['p50']:.1f} / {web[name]['submit_ms']['p95']:.1f} ms (p50/p95)",
                "20 ms",
            )
            for name in ("rush", "cluster_chain")
        ),
        (
            "50 nearest open ones",
            f"{web['neighbours_ms']['p50']:.1f} / {web['neighbours_ms']['p95']:.1f} ms (p50/p95)"
            + (f", recall {web['recall']:.3f}" if "recall" in web else ""),
            "p95 10 ms",
        ),
        *(
            (f"order all tasks anew, in the background, `{name}`", f"{web[name]['rank_s']:.1f} s", "")
            for name in ("rush", "cluster_chain")
        ),
        ("web process: memory, and its peak", f"{web['steady_mb']:,} and {web['peak_mb']:,} MB", ""),
        ("worker: a training round with 1,000 labels", f"{worker['train_s']:.0f} s", ""),
        ("worker: first map, and map again", f"{worker['map_s']:.0f} and {worker['map_again_s']:.0f} s", ""),
        ("worker: peak memory", f"{worker['peak_mb']:,} MB", ""),
        ("Redis: memory", f"{found['redis_mb']} MB", ""),
    ]
    lines = ["| what | measured | goal |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {measured} | {goal} |" for what, measured, goal in rows)])


def write(path: Path, text: str) -> None:
    """Put the text between the marks of a file."""
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def main() -> None:
    """Print the tables, or write them into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        print(tables(), strategy_tables(), sep="\n\n")
        return
    root = RESULTS.parents[1]
    write(root / "README.md", tables())
    write(root / "docs" / "strategies.md", strategy_tables())
    write(root / "docs" / "million.md", million())


if __name__ == "__main__":
    main()
