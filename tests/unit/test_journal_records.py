"""What the journal stores of a record."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import numpy as np
import pytest

from controller.journal.paths import default_journal, state_dir
from controller.journal.records import dumps, dumps_exact, text
from controller.journal.store import Store
from controller.planning.decision import Candidate, Decision, Excluded, Reason


def a_decision(**changes: object) -> Decision:
    values: dict[str, object] = {
        "now_s": 1.0,
        "sequence": 1,
        "model": "digits",
        "serving": "wide",
        "desired": "narrow",
        "target": "narrow",
        "reason": Reason.ESCAPE,
        "candidates": (
            Candidate(
                variant="wide",
                model="digits_wide",
                quality=0.9,
                excluded=Excluded.NOT_READY,
                known=True,
                service_s=0.0123456789,
                utilization_ratio=math.inf,
                p50_s=math.nan,
                p99_s=0.08,
                told_p99_s=0.09,
                miss_ratio=0.5,
                value=-math.inf,
                feasible=False,
            ),
        ),
        "rate_rps": 10.0,
        "rate_p95_rps": 20.0,
        "rows_per_request": 1.5,
        "backlog_requests": 3,
        "backlog_s": 0.1,
        "drift_ratio": 1.0,
    }
    return Decision(**{**values, **changes})


def test_a_decision_becomes_standard_json_with_null_for_what_is_no_number() -> None:
    body = json.loads(dumps(a_decision()))
    candidate = body["candidates"][0]
    assert body["reason"] == "escape"
    assert candidate["excluded"] == "not_ready"
    assert candidate["utilization_ratio"] is None
    assert candidate["p50_s"] is None
    assert candidate["value"] is None
    assert candidate["service_s"] == pytest.approx(0.0123456789, rel=1e-5)


def test_numpy_values_are_stored_as_plain_numbers() -> None:
    assert json.loads(dumps({"a": np.float64(0.25), "b": np.arange(3)})) == {
        "a": 0.25,
        "b": [0, 1, 2],
    }


def test_learned_numbers_come_back_bit_for_bit() -> None:
    values = [0.1 + 0.2, 1e-300, math.pi]
    assert json.loads(dumps_exact({"v": np.array(values)}))["v"] == values


def test_text_that_utf8_cannot_hold_is_replaced_not_refused() -> None:
    assert text("a\ud800b") == "a?b"
    assert text(None) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_STATE_HOME": "/x"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/x"}, "/x/triton-governor"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/triton-governor"),
        ({"HOME": "/h"}, "/h/.local/state/triton-governor"),
    ],
)
def test_the_state_folder_is_systemds_then_the_users(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(state_dir()) == expected
    assert default_journal().parent == state_dir()


def test_a_link_to_nothing_makes_no_file_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    path = tmp_path / "journal.sqlite3"
    path.symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        Store(path, 2**20).open()
    assert not elsewhere.exists()


def test_a_new_file_is_closed_to_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "journal.sqlite3", 2**20)
    store.open()
    store.close()
    assert not stat.S_IMODE(store.path.stat().st_mode) & 0o007
