"""What differs between two policies, and what their keys mean."""

import json
import re
from pathlib import Path

import pytest

from controller.cli.main import main
from controller.policy.compare import changes
from controller.policy.describe import UnknownKeyError, find, keys
from controller.policy.json_schema import build_schema
from controller.policy.load import load_policy
from controller.policy.render import policy_to_dict

POLICIES = Path(__file__).parents[2] / "policies"
DEMO = POLICIES / "demo.yaml"


def edited(tmp_path: Path, before: str, after: str) -> Path:
    text = DEMO.read_text(encoding="utf-8")
    assert before in text
    path = tmp_path / "edited.yaml"
    path.write_text(text.replace(before, after), encoding="utf-8")
    return path


def test_comments_order_and_written_out_defaults_are_no_difference(tmp_path: Path) -> None:
    same = edited(tmp_path, "mode: act  ", "mode: act\non_stop: keep  # ")
    assert changes(load_policy(DEMO), load_policy(same)) == ()


def test_a_changed_value_is_told_by_its_path(tmp_path: Path) -> None:
    slower = load_policy(edited(tmp_path, "latency: 60ms", "latency: 0.1s"))
    (change,) = changes(load_policy(DEMO), slower)
    assert (change.path, change.before, change.after) == (
        "models.digits.objective.latency",
        "60ms",
        "100ms",
    )


def test_a_variant_that_is_gone_and_one_that_came_are_told(tmp_path: Path) -> None:
    renamed = load_policy(edited(tmp_path, "wide:    {", "broad:   {"))
    found = {change.path: change for change in changes(load_policy(DEMO), renamed)}
    assert set(found) == {"models.digits.variants.wide", "models.digits.variants.broad"}
    assert found["models.digits.variants.wide"].after is None
    assert found["models.digits.variants.broad"].before is None


def test_diff_answers_as_diff_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = edited(tmp_path, "percentile: 99", "percentile: 95")
    broken = edited(tmp_path.parent, "percentile: 99", "percentile: 195")
    assert main(["policy", "diff", str(DEMO), str(DEMO)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["policy", "diff", str(DEMO), str(other)]) == 1
    assert capsys.readouterr().out == "models.digits.objective.percentile: 99 -> 95\n"
    assert main(["policy", "diff", str(DEMO), str(other), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["changes"]) == 1
    assert main(["policy", "diff", str(DEMO), str(broken)]) == 2
    assert re.search(r"edited.yaml:\d+:\d+: models.digits", capsys.readouterr().err)


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_key_of_a_policy_can_be_explained(path: Path) -> None:
    def walk(values: dict[str, object], here: str) -> None:
        for key, value in values.items():
            assert find(f"{here}{key}")[0].meaning
            if isinstance(value, dict):
                walk(value, f"{here}{key}.")

    walk(policy_to_dict(load_policy(path)), "")


def test_a_key_is_found_by_its_end_and_told_with_what_is_under_it() -> None:
    assert [key.path for key in find("latency")] == ["models.NAME.objective.latency"]
    under = [key.path for key in find("models.qa.objective")]
    assert under == [
        "models.NAME.objective",
        "models.NAME.objective.latency",
        "models.NAME.objective.percentile",
    ]
    assert find("qa.min_quality")[0].path == "models.NAME.min_quality"
    for misplaced in ("mqtt.memory", "stability.alias", "objective.quality"):
        with pytest.raises(UnknownKeyError):
            find(misplaced)
    with pytest.raises(UnknownKeyError, match="perhaps latency"):
        find("latncy")


def test_what_is_told_of_a_key_is_what_the_schema_says() -> None:
    by_path = {key.path: key for key in keys()}
    interval = build_schema()["properties"]["interval"]
    assert by_path["interval"].meaning == interval["description"]
    assert by_path["interval"].default == interval["default"] == "auto"
    assert by_path["mode"].values == "act or advise"
    assert by_path["models.NAME.min_quality"].values == "a number from 0 to 1"
    assert by_path["version"].required


def test_explain_prints_meaning_values_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "explain", "on_stop"]) == 0
    told = capsys.readouterr().out
    assert "keep or revert; default keep" in told
    assert "When the daemon stops" in told
    assert main(["policy", "explain", "nonsense"]) == 1
    assert "lists them all" in capsys.readouterr().err
    assert main(["policy", "explain", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["keys"]) == len(keys())
