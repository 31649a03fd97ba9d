"""The figures of bench/results as the README's tables: python bench/table.py [--write README.md]."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"


def load(name: str) -> dict[str, Any]:
    """The figures of one benchmark, empty where it has not run."""
    path = RESULTS / f"{name}.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    return figures


def rows() -> Iterator[tuple[str, str, str]]:
    """(what, measured, goal) of every benchmark that has run."""
    for name, one in load("submit").items():
        if name == "web process":
            yield (
                "web process at 10,000 images",
                f"{one['resident_mb']} MB resident, {'with' if one['torch'] else 'no'} torch",
                "≤ 300 MB, no torch",
            )
            continue
        yield (
            f"submit → next, {name}, {one['annotations']} answers",
            f"{one['with_ms']['p50']:.0f} ms against {one['without_ms']['p50']:.0f} alone: "
            f"+{one['added_p50_ms']:.0f} ms (p50); intended next task {one['hit_rate']:.0%}",
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


def main() -> None:
    """Print the tables, or write them between the marks of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.write is None:
        print(tables())
        return
    before, _, rest = options.write.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    options.write.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}")


if __name__ == "__main__":
    main()
