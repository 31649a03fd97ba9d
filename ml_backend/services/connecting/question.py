"""Which control is predicted, and what its classes are called by now: as people say, checked before kept."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence

from ml_backend.controls import Control, control_of, renames_of, taken_in
from ml_backend.domain.errors import BadRequest, UnusableConfig
from ml_backend.domain.events import ControlChosen
from ml_backend.domain.model import ProjectRef
from ml_backend.ports import State


def ask(
    ref: ProjectRef, state: State, label_config: str, control: str | None, renames: Sequence[str]
) -> Control:
    """Predict this control from now on ("": the first that is asked of every image), its classes renamed.

    ``renames`` are OLD=NEW, OLD being a name in answers that the label config no longer has, or OLD= to take
    one back; they come on top of earlier ones. Nothing changes in Label Studio. BadRequest says what is
    wrong, and nothing is kept then.
    """
    options = state.options(ref)
    chosen = {} if control is None else {"control": control}
    try:
        asked, change = taken_in(options, label_config, **chosen)
    except UnusableConfig as error:
        if not control:
            raise
        raise BadRequest(error.message, error.hint, field="control") from None
    if renames:
        named = _renamed(renames_of(options), renames, asked)
        change["renames"] = json.dumps(named)
        asked = control_of({**options, **change})
    del change["label_config"]  # the backend notes it, and syncs where it is the first
    state.set_options(ref, **change)
    state.publish(ref, ControlChosen())
    return asked


def _renamed(known: Mapping[str, str], renames: Sequence[str], control: Control) -> dict[str, str]:
    """What is known already with these renames on top; each of them must lead to a class."""
    became, given = dict(known), []
    for text in renames:
        old, new = _split(text, control)
        if not new:
            if old not in became:
                raise BadRequest(f"{old!r} was not renamed.", _there(became), field="rename")
            del became[old]
            continue
        if old in control.columns:
            raise BadRequest(
                f"{old!r} is a class of the label config, so its answers keep that name.",
                "Rename classes that are gone. To swap two names, change the answers in Label Studio.",
                field="rename",
            )
        became[old] = new
        given.append(old)
    fresh = control.renamed(became)
    for old in set(given) & became.keys():
        if fresh.lost([old]):
            near = difflib.get_close_matches(became[old], control.classes, 1)
            meant = f"Did you mean {near[0]!r}? " if near else ""
            raise BadRequest(
                f"{old!r} can't become {became[old]!r}, which leads to no class of the label config.",
                f"{meant}It has: {', '.join(control.classes[:20])}.",
                field="rename",
            )
    return became


def _split(text: str, control: Control) -> tuple[str, str]:
    """OLD and NEW of OLD=NEW; where names have a = themselves, so that NEW is a class."""
    at = [n for n, sign in enumerate(text) if sign == "="]
    if not text[1:].count("="):
        raise BadRequest(
            f"{text!r} is not OLD=NEW.", "Give the old name, =, and the new one.", field="rename"
        )
    cut = next((n for n in at if n and text[n + 1 :] in control.columns), text.index("=", 1))
    return text[:cut], text[cut + 1 :]


def _there(became: Mapping[str, str]) -> str:
    said = ", ".join(f"{old}={new}" for old, new in became.items())
    return f"There are: {said}." if said else "Nothing was renamed so far."
