"""What the journal tells when the daemon does not answer.

Owns the answers of `status`, `explain` and `history` from the file alone, each marked as old and
with the exit code of a daemon that is down. It must not pretend to know the present.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.cli import output
from controller.cli.render import local_time, render_explanation, render_history, render_last
from controller.cli.table import Paper
from controller.journal.reader import JournalReader, JournalUnreadableError

_ADVICE = "start it with `governor run --policy FILE`"


def show_last_status(why: str, journal: Path, *, as_json: bool, paper: Paper) -> int:
    """Say that the daemon is down, and show each model's last known state with its age."""
    models = [_model(age_s, decision) for age_s, decision in _last_decisions(journal)]
    if as_json:
        output.print_json(
            {
                "version": 1,
                "daemon": None,
                "error": why,
                "journal": str(journal),
                "last": models,
            }
        )
        return output.UNREACHABLE
    _say(why, journal if models else None)
    if models:
        print(render_last(models, min(model["age_s"] for model in models), paper))
    return output.UNREACHABLE


def show_last_decisions(
    why: str, journal: Path, model: str | None, *, as_json: bool, paper: Paper
) -> int:
    """Say that the daemon is down, and show what the last decisions were chosen from."""
    entries = [
        {
            "name": decision.get("model"),
            "age_s": age_s,
            "text": f"{decision.get('model')}: the last decision in the journal is"
            f" {age_s:.0f} s old; its reason was {decision.get('reason')}.",
            "decision": _in_ms(decision),
        }
        for age_s, decision in _last_decisions(journal)
        if model in (None, decision.get("model"))
    ]
    if as_json:
        output.print_json({"error": why, "journal": str(journal), "models": entries})
        return output.UNREACHABLE
    _say(why, journal if entries else None)
    if entries:
        print("\n\n".join(render_explanation(entry, paper) for entry in entries))
    return output.UNREACHABLE


def show_old_actions(
    why: str, journal: Path, model: str | None, limit: int, *, as_json: bool, paper: Paper
) -> int:
    """Say that the daemon is down, and show the newest actions in the journal."""
    try:
        with JournalReader(journal) as reader:
            actions = reader.actions(model, limit)
    except JournalUnreadableError:
        actions = []
    if as_json:
        output.print_json({"error": why, "journal": str(journal), "actions": actions})
        return output.UNREACHABLE
    _say(why, journal if actions else None)
    if actions:
        print(render_history(actions, paper, local_time))
    return output.UNREACHABLE


def _say(why: str, journal: Path | None) -> None:
    """Say why the daemon does not answer, and which journal does, if one does.

    A socket does not tell where its daemon kept a journal: this may be another server's.
    """
    output.print_error(why, advice=_ADVICE)
    if journal is not None:
        print(f"  what follows is from the journal {journal}", file=sys.stderr)


def _last_decisions(journal: Path) -> list[tuple[float, dict[str, Any]]]:
    try:
        with JournalReader(journal) as reader:
            found = reader.last_decisions()
    except JournalUnreadableError:
        return []
    now_unix_s = time.time()
    return [(max(now_unix_s - at_unix_s, 0.0), decision) for at_unix_s, decision in found]


def _model(age_s: float, decision: Mapping[str, Any]) -> dict[str, Any]:
    view = _in_ms(decision)
    variant = view.get("serving") or view.get("target")
    chosen: dict[str, Any] = next(
        (c for c in view["candidates"] if c.get("variant") == variant), {}
    )
    return {
        "name": view.get("model"),
        "serving": variant,
        "age_s": age_s,
        "rate_rps": view.get("rate_rps"),
        "queue": view.get("backlog_requests"),
        # Decisions that an older governor stored have no `told`.
        "predicted_p99_ms": chosen.get("told_p99_ms", chosen.get("p99_ms")),
        "reason": view.get("reason"),
    }


def _in_ms(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored decision with the names and units of the daemon's JSON."""
    view = _renamed(decision)
    view["candidates"] = [_renamed(c) for c in decision.get("candidates") or ()]
    return view


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        if key.endswith("_s") and key != "now_s" and isinstance(value, (int, float)):
            renamed[f"{key[:-2]}_ms"] = value * 1e3
        else:
            renamed[key] = value
    return renamed
