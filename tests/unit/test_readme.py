"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import strategies
from ml_backend.cli.main import COMMANDS
from ml_backend.settings import Settings
from strategies import registry

README = (Path(__file__).parents[2] / "README.md").read_text()


def rows() -> dict[str, tuple[str, str]]:
    found = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    return {name: (default, text) for name, default, text in found}


def test_every_setting_is_in_the_table_with_its_default_and_meaning() -> None:
    expected = {}
    for name, field in Settings.model_fields.items():
        secret = hasattr(field.default, "get_secret_value")
        default = "" if secret else str(field.default)
        variable = str(field.validation_alias or f"RUSH_{name.upper()}")
        expected[variable] = (f"`{default}`" if default else "", field.description)
    assert rows() == expected


def test_every_command_it_names_exists() -> None:
    named = set(re.findall(r"rush ([a-z]+)", README))
    assert named <= set(COMMANDS), named - set(COMMANDS)
    assert re.findall(r"\[(\d+) strategies\]", README) == [str(len(strategies.names()))]


def test_its_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["strategies"].select("margin", scope["pool"], k=2).rows.tolist() == [1, 2]  # type: ignore[attr-defined]


def test_every_file_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (Path(__file__).parents[2] / target).exists(), target


def test_the_page_of_strategies_has_all_of_them_with_their_needs_and_its_code_runs() -> None:
    page = (Path(__file__).parents[2] / "docs/strategies.md").read_text().partition("## Figures")[0]
    table = dict(re.findall(r"^\| `(\w+)[^`]*` \| .*? \| .*? \| (.*?) \|", page, re.MULTILINE))
    assert sorted(table) == strategies.names()
    for name, needs in table.items():
        assert all(signal in needs for signal in strategies.get(name).needs) or name in ("mix", "grouped")
        if isinstance(registry.BUILT_IN[name], strategies.Factory) and name != "mix":
            assert re.search(rf"`{name}\(\w+=", page)
    scope: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, scope)
    assert scope["closest_call"].order(scope["pool"], 2, scope["np"].random.default_rng(0)).tolist() == [1, 2]  # type: ignore[attr-defined]
