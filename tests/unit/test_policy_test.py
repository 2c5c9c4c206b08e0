"""`governor policy test`: a whole policy on a simulated server, before it goes live."""

import json
import math
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from controller.cli.main import main
from controller.journal import Journal
from controller.journal.records import DecisionRow, Stamp, insertion
from controller.planning.core import GovernorCore
from controller.planning.decision import Decision, Reason
from controller.policy.load import parse_policy
from controller.policy.model import Mode
from controller.telemetry.observation import BatchSample, Observation
from controller.twin.ladder import Ladder, TwinVariant, interpolate
from controller.twin.recorded import RecordedError, RecordedLoad
from controller.twin.rehearsal import busiest, cast, rehearse
from controller.twin.scene import from_files, from_journal
from controller.twin.trace import Trace

START_S = 1_700_000_000
TIMES_S = {"m_large": (0.004, 0.003), "m_little": (0.001, 0.0005), "v_only": (0.002, 0.004)}
POLICY = """
version: 1
triton: {grpc: "127.0.0.1:8001", metrics: "http://127.0.0.1:8002/metrics"}
interval: 100ms
models:
  chat:
    objective: {latency: 200ms, percentile: 99}
    client_max_batch: 8
    variants:
      large: {model: m_large, quality: 0.95}
      little: {model: m_little, quality: 0.85}
      unseen: {model: m_unseen, quality: 0.80}
  vision:
    objective: {latency: 150ms, percentile: 95}
    variants: {only: {model: v_only, quality: 0.9}}
"""
NIGHT = 'schedules: {night: {from: "00:00", to: "23:59", models: {chat: {variants: [NAME]}}}}\n'


def parsed(text=POLICY):
    return parse_policy(text, "p.yaml")


def learned(policy):
    core = GovernorCore(policy)
    samples = tuple(
        BatchSample(model, rows, 5, fixed_s + row_s * rows, 0.1)
        for model, (fixed_s, row_s) in TIMES_S.items()
        for rows in range(1, 9)
    )
    nothing = Observation(now_s=0.0, sequence=0, models={}, variants={}, window_s=0.0)
    for tick in range(20):
        core.step(replace(nothing, now_s=tick * 0.5, batch_samples=samples))
    return json.loads(json.dumps(core.state()))


@pytest.fixture(scope="module")
def state():
    return learned(parsed())


def loads(rates, rows=1.0):
    return [
        RecordedLoad(START_S + at + 0.3, rate, rows)
        for at, rate in enumerate(rates)
        if rate is not None
    ]


def scene(state, **rates):
    return from_journal("journal", {name: loads(own) for name, own in rates.items()}, state)


def test_models_share_one_time_line(state):
    found = scene(
        state,
        chat=[10.0, None, 30.0, *[None] * 20, 40.0],
        vision=[None, 5.0, *[None] * 10, 7.0, *[None] * 10],
    )
    # 0, 1, 2, then 5 of 9 s held, second 12, 5 of 10 s held, second 23.
    assert found.rate_rps["chat"].tolist() == [10, 10, 30, *[30] * 5, 0, *[0] * 5, 40]
    assert found.rate_rps["vision"].tolist() == [0, 5, 5, *[5] * 4, 0, 7, *[7] * 5, 0]
    assert found.unknown_s == 4 + 5
    assert found.silent_s == {"chat": 6, "vision": 3}
    assert found.unix_s.tolist() == [START_S + at for at in (*range(8), *range(12, 18), 23)]


def test_too_little_of_a_record_is_said(state):
    with pytest.raises(RecordedError, match="journal has fewer than two seconds"):
        scene(state, chat=[10.0], vision=[math.nan])


def test_what_was_never_measured_is_left_out_and_what_cannot_be_tested_is_said(state):
    text = POLICY + "  voice: {objective: {latency: 1s, percentile: 99}, variants: {a: {model: a, "
    policy = parsed(text + "quality: 0.5}}}\n")
    found = cast(policy, scene(state, chat=[1.0] * 3, vision=[1.0] * 3, voice=[1.0] * 3))
    assert found.left_out == (("chat", "unseen"), ("voice", "a"))
    assert found.untested == {"voice": "none of its variants was ever measured"}
    assert [[v.name for v in own] for own in found.variants] == [["large", "little"], ["only"]]
    # The tick is that of the policy, though the model is left out.
    assert found.policy.tick_s == policy.tick_s
    quiet = cast(policy, scene(state, chat=[1.0] * 3))
    assert quiet.untested["vision"] == "no load of it in journal"


def test_a_schedule_or_a_quality_that_leaves_only_what_was_never_measured_is_no_test(state):
    under = scene(state, chat=[1.0] * 3, vision=[1.0] * 3)
    night = cast(parsed(POLICY + NIGHT.replace("NAME", "unseen")), under)
    assert "none of the variants that may serve under night" in night.untested["chat"]
    odd = POLICY.replace("quality: 0.80", "quality: 0.99").replace(
        "client_", "min_quality: 0.97\n    client_"
    )
    assert (
        "none of the variants that may serve was ever" in cast(parsed(odd), under).untested["chat"]
    )


def test_schedules_are_in_force_by_the_recorded_time_or_as_they_are_named(state):
    then = time.localtime(START_S + 60 - START_S % 60)
    begins = f"{then.tm_hour:02}:{then.tm_min:02}"
    text = f'schedules: {{s: {{from: "{begins}", to: "{begins}", days: [DAY], models: '
    text = text.replace("DAY", time.strftime("%a", then).lower())
    policy = parsed(POLICY + text + "{chat: {variants: [little]}}}}\n")
    under = scene(state, chat=[1.0] * 120, vision=[1.0] * 120)
    first_s = 60 - START_S % 60
    assert cast(policy, under).times == ((0.0, ()), (float(first_s), ("s",)))
    assert cast(policy, under, ["s"]).times == ((0.0, ("s",)),)
    trace = Trace("t", under.rate_rps["chat"], 1.0)
    given = from_files([policy], {None: trace}, {}, None)
    assert any("a trace has no time of day" in note for note in cast(policy, given).notes)
    run = rehearse([cast(policy, under)], under, [1], jobs=1)["policies"][0]["models"][0]
    assert run["variants"]["little"] >= 1.0 - first_s / 120.0 - 0.02


def test_what_is_not_simulated_is_said(state):
    text = (
        POLICY.replace("v_only", "m_large") + "memory: {gpu_budget: 1GiB}\ngpu: {devices: [0, 1]}\n"
    )
    policy = replace(parsed(text), mode=Mode.ADVISE)
    found = cast(policy, scene(state, chat=[1.0] * 3, vision=[1.0] * 3))
    said = "\n".join(found.notes)
    for words in ("memory budget", "mode: advise: it", "several GPUs", "m_large serves two models"):
        assert words in said
    names = [v.model for model in found.policy.models for v in model.variants]
    assert len(set(names)) == len(names)


def test_of_a_model_s_own_mode_and_queue_and_of_limits_of_the_gpu_it_is_said_that_they_are_not(
    state,
):
    text = POLICY.replace(
        "    client_max_batch: 8\n",
        "    client_max_batch: 8\n    mode: advise\n    queue: {timeout: 100ms}\n",
    )
    under = scene(state, chat=[1.0] * 3, vision=[1.0] * 3)
    found = cast(parsed(text + "gpu: {max_temperature: 80C}\n"), under)
    said = "\n".join(found.notes)
    assert "mode: advise of chat: it is tested as if it acted" in said
    assert "queue of chat: none of its limits" in said
    assert "gpu.max_temperature, gpu.max_power" in said
    assert cast(parsed(), under).notes == ()
    # What the model says holds, not what the policy says of others.
    acts = text.replace("mode: advise", "mode: act").replace("version: 1", "version: 1\nmode: act")
    assert not [note for note in cast(parsed(acts), under).notes if "advise" in note]


def test_the_busiest_part_is_where_the_work_is(state):
    under = scene(state, chat=[5.0] * 10 + [1.0] * 30, vision=[0.0] * 20 + [50.0] * 5 + [0.0] * 15)
    part = busiest(under, cast(parsed(), under), 5.0)
    assert part.unix_s.tolist() == [START_S + at for at in range(20, 25)]
    assert part.rate_rps["vision"].tolist() == [50.0] * 5
    assert busiest(under, cast(parsed(), under), 100.0) is under


def test_a_ladder_is_found_by_the_variants_name_or_tritons_and_a_profile_by_its_variant():
    text = """
version: 1
triton: {grpc: "127.0.0.1:8001"}
models:
  m:
    objective: {latency: 100ms, percentile: 99}
    variants:
      a: {model: t_a, quality: 0.9, max_batch: 8, profiles: {p: {model: t_ap, max_batch: 2}}}
      b: {model: t_b, quality: 0.8}
      c: {model: t_c, quality: 0.7}
"""
    curve = interpolate({1: 1.0, 128: 50.0})
    ladder = Ladder("l", (TwinVariant("a", 0.1, curve), TwinVariant("t_b", 0.1, curve)))
    policy = parse_policy(text, "p.yaml")
    trace = Trace("t", loads_of_ten(), 10.0)
    under = from_files([policy], {None: trace}, {"m": ladder}, 40.0)
    assert under.duration_s == 30
    assert under.rate_rps["m"].max() == pytest.approx(40.0, rel=0.05)
    found = cast(policy, under)
    assert found.left_out == (("m", "c"),)
    assert [(v.name, v.max_batch, v.quality) for v in found.variants[0]] == [
        ("a", 8, 0.9), ("a.p", 2, 0.9), ("b", 64, 0.8),
    ]  # fmt: skip


def loads_of_ten():
    return interpolate({1: 1000.0, 3: 3000.0})


@pytest.fixture
def journal(tmp_path, state):
    path = tmp_path / "journal.sqlite3"
    one = Journal(path, 10_000_000)
    one.open()
    one.save_learned("core", state)
    assert one.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        for second in range(40):
            for model, rate_rps in (("chat", 10.0 if second < 20 else 160.0), ("vision", 10.0)):
                decision = Decision(
                    now_s=float(second), sequence=second, model=model, serving="x", desired="x",
                    target="x", reason=Reason.STEADY, candidates=(), rate_rps=rate_rps,
                    rate_p95_rps=rate_rps, rows_per_request=2.0 if model == "chat" else 1.0,
                    backlog_requests=0, backlog_s=0.0, drift_ratio=1.0,
                )  # fmt: skip
                stamp = Stamp(START_S + second + 0.1, float(second))
                connection.execute(*insertion(DecisionRow(stamp, decision)))
    return path


def run(tmp_path: Path, journal: Path, *more: str, text: str = POLICY) -> int:
    (tmp_path / "new.yaml").write_text(text)
    (tmp_path / "old.yaml").write_text(POLICY)
    files = [str(tmp_path / "new.yaml"), "--journal", str(journal)]
    return main(["policy", "test", *files, "--jobs", "1", "--seeds", "2", *more])


def test_a_policy_that_keeps_its_objectives_passes(tmp_path, journal, capsys):
    assert run(tmp_path, journal) == 0
    told = capsys.readouterr().out
    assert "new.yaml: every objective is met" in told
    assert "left out, never measured: unseen of chat" in told
    assert "time on little" in told or "time on large" in told


def test_one_that_forbids_what_the_load_needs_is_told_beside_the_one_in_force(
    tmp_path, journal, capsys
):
    # 160 requests of 2 rows a second are more than the large one bears.
    text = POLICY.replace("client_max", "min_quality: 0.9\n    client_max")
    code = run(tmp_path, journal, "--against", str(tmp_path / "old.yaml"), "--json", text=text)
    document = json.loads(capsys.readouterr().out)
    assert code == 1
    assert not document["ok"]
    assert document["missed"][0].startswith("chat: ")
    new, old = ({m["name"]: m for m in one["models"]} for one in document["policies"])
    assert not new["chat"]["objective_met"]
    assert old["chat"]["objective_met"]
    assert new["chat"]["variants"]["large"] > 0.99
    assert new["chat"]["requests"] == old["chat"]["requests"]  # the same ones
    (chat, _) = document["difference"]
    gained = new["chat"]["effective_quality"] - old["chat"]["effective_quality"]
    assert chat["effective_quality"] == pytest.approx(gained)
    assert chat["ci95"]["effective_quality"] > 0.0


def test_more_can_be_required(tmp_path, journal, capsys):
    quick = ("--busiest", "5s", "--seeds", "1")
    assert run(tmp_path, journal, *quick, "--require", "attainment >= 50") == 0
    assert run(tmp_path, journal, *quick, "--require", "vision.effective_quality>=0.95") == 1
    told = capsys.readouterr().out
    assert "MISSED  vision: effective_quality is 0.9, >= 0.95 is required" in told
    assert "chat: effective_quality" not in told


def test_what_the_journal_does_not_know_is_no_pass(tmp_path, journal, capsys):
    text = POLICY + "  voice: {objective: {latency: 1s, percentile: 99}, variants: {a: {model: a, "
    text += "quality: 0.5}}}\n"
    quick = ("--since", "5s", "--seeds", "1")
    assert run(tmp_path, journal, *quick, text=text) == 1
    assert "MISSED  voice: not tested: no load of it in" in capsys.readouterr().out
    assert run(tmp_path, journal, *quick, "--model", "vision", text=text) == 0
    assert "chat" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--trace", "t.csv"], 2, "--trace and --ladder go together"),
        (["--trace", "t", "--ladder", "l", "--journal", ""], 2, "--journal does not go with"),
        (["--trace", "t", "--ladder", "l", "--instance", "a"], 2, "does not go with --trace"),
        (["--journal", "", "--instance", "../x"], 2, "'../x' is no name of an instance"),
        (["--peak", "100"], 2, "--peak does not go with a journal"),
        (["--require", "speed>=1"], 2, "with attainment, effective_quality"),
        (["--require", "other.p99<=100"], 2, "no model 'other': chat, vision"),
        (["--model", "other"], 2, "no model 'other': chat, vision"),
        (["--schedule", "night"], 2, "no schedule 'night'"),
        (["--seeds", "0"], 2, "--seeds and --peak lie above 0"),
        (["--since", "soon"], 2, "must be a duration"),
        (["--journal", "/nowhere/j"], 1, "there is no journal at /nowhere/j"),
        (["--against", "/nowhere/p.yaml"], 1, "/nowhere/p.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, journal, capsys, more, code, words):
    assert run(tmp_path, journal, *more) == code
    assert words in capsys.readouterr().err


def test_the_journal_is_the_policy_s_unless_an_instance_is_named(
    tmp_path, journal, monkeypatch, capsys
):
    monkeypatch.setattr("controller.journal.paths.SYSTEM_STATES", tmp_path / "lib")
    file = tmp_path / "p.yaml"
    file.write_text(f"{POLICY}journal: {{path: {tmp_path / 'none.sqlite3'}}}\n")
    asked = ["policy", "test", str(file), "--jobs", "1", "--seeds", "1", "--since", "3s"]
    assert main(asked) == 1
    assert f"there is no journal at {tmp_path / 'none.sqlite3'}" in capsys.readouterr().err
    (tmp_path / "lib" / "triton-governor-edge").mkdir(parents=True)
    journal.rename(tmp_path / "lib" / "triton-governor-edge" / "journal.sqlite3")
    assert main([*asked, "--instance", "edge"]) == 0
    assert main([*asked, "--instance", "other"]) == 1
    assert "triton-governor-other/journal.sqlite3" in capsys.readouterr().err


def test_a_trace_and_ladders_do_as_well_as_a_journal(tmp_path, capsys):
    ladder = "variants:\n" + "".join(
        f"  - {{name: {name}, accuracy: 90, latency_ms: {{1: {ms}, 8: {8 * ms}}}}}\n"
        for name, ms in (("m_large", 5), ("little", 1), ("only", 4), ("unseen", 1))
    )
    (tmp_path / "p.yaml").write_text(POLICY)
    (tmp_path / "ladder.yaml").write_text(ladder)
    (tmp_path / "a.csv").write_text("second,requests\n" + "".join(f"{s},20\n" for s in range(10)))
    (tmp_path / "b.csv").write_text("second,requests\n" + "".join(f"{s},40\n" for s in range(20)))
    files = ["--trace", str(tmp_path / "a.csv"), "--trace", f"vision={tmp_path / 'b.csv'}"]
    files += ["--ladder", str(tmp_path / "ladder.yaml"), "--jobs", "1", "--seeds", "1", "--json"]
    assert main(["policy", "test", str(tmp_path / "p.yaml"), *files]) == 0
    document = json.loads(capsys.readouterr().out)
    chat, vision = document["policies"][0]["models"]
    assert document["simulated_s"] == 10
    assert 130 < chat["requests"] < 270
    assert 300 < vision["requests"] < 500
    assert main(["policy", "test", str(tmp_path / "p.yaml"), "--trace", "a=b", *files]) == 2
    assert "there is no model 'a'" in capsys.readouterr().err


def test_a_model_without_a_request_in_this_time_is_not_tested_and_the_others_are(state):
    under = scene(state, chat=[20.0] * 5, vision=[0.0] * 5)
    document = rehearse([cast(parsed(), under)], under, [1], jobs=1)
    (policy,) = document["policies"]
    assert [model["name"] for model in policy["models"]] == ["chat"]
    assert policy["untested"] == [
        {"model": "vision", "why": "no request of it arrives in this time"}
    ]


def test_the_missing_extra_is_named(tmp_path, journal, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert run(tmp_path, journal) == 1
    assert "pip install 'triton-governor[replay]'" in capsys.readouterr().err


def test_the_policy_is_that_of_the_host_that_is_asked_for(tmp_path, journal, capsys):
    text = POLICY + "hosts: {h: {models: {chat: null, vision: {min_quality: 0.5}}}}\n"
    quick = ("--since", "3s", "--seeds", "1", "--host", "h")
    assert run(tmp_path, journal, *quick, text=text) == 0
    told = capsys.readouterr().out
    assert "vision" in told
    assert "chat" not in told
