"""What of a policy holds at which time of the week."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.daemon.calendar import Calendar
from controller.planning.bounds import exclusions
from controller.planning.decision import Excluded
from controller.policy.load import PolicyError, parse_policy
from controller.policy.render import policy_to_yaml
from controller.policy.schedules import active, under
from controller.telemetry.observation import Observation

TEXT = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  chat:
    objective: {latency: 60ms, percentile: 99}
    min_quality: 0.5
    client_max_batch: 1
    variants:
      best: {model: best, quality: 0.95}
      good:
        model: good
        quality: 0.9
        max_batch: 8
        profiles: {b1: {model: good_b1, max_batch: 1}}
      fast: {model: fast, quality: 0.7}
  other:
    objective: {latency: 60ms, percentile: 99}
    variants: {only: {model: only, quality: 0.9}}
schedules:
  night:
    days: [mon, fri]
    from: "22:00"
    to: "06:00"
    models: {chat: {variants: [good, fast]}}
  office:
    from: "09:00"
    to: "17:00"
    models: {chat: {min_quality: 0.8}}
  lunch:
    from: "12:00"
    to: "13:00"
    models: {chat: {variants: [best, fast]}}
"""
POLICY = parse_policy(TEXT, "p.yaml")
MON, TUE, FRI, SAT, SUN = 0, 1, 4, 5, 6


def at(weekday: int, clock: str) -> tuple[str, ...]:
    hour, minute = map(int, clock.split(":"))
    return active(POLICY, weekday, 60 * hour + minute)


@pytest.mark.parametrize(
    ("weekday", "clock", "names"),
    [
        (MON, "21:59", ()),
        (MON, "22:00", ("night",)),
        (TUE, "05:59", ("night",)),  # it began on Monday
        (TUE, "06:00", ()),
        (TUE, "22:00", ()),
        (SAT, "00:00", ("night",)),
        (SUN, "00:00", ()),
        (MON, "05:00", ()),  # it did not begin on Sunday
        (SUN, "09:00", ("office",)),
        (SUN, "12:30", ("office", "lunch")),
        (SUN, "13:00", ("office",)),
    ],
)
def test_a_schedule_is_in_force_from_its_begin_to_before_its_end(weekday, clock, names):
    assert at(weekday, clock) == names


def test_it_names_who_may_serve_and_that_includes_their_profiles():
    chat = under(POLICY, ("night",)).model("chat")
    assert [v.name for v in chat.variants if chat.lets(v)] == ["good", "good.b1", "fast"]
    best = chat.variants.index(chat.variant("best"))
    # Whoever serves when it begins has to leave, too.
    for serving in (None, best):
        told = exclusions(chat, Observation(0.0, 0, {}, {}, 0.02), (), serving)
        assert told[best] is Excluded.NOT_ALLOWED
    assert under(POLICY, ("night",)).model("other") == POLICY.model("other")


def test_of_several_the_narrowest_counts():
    chat = under(POLICY, ("office", "lunch")).model("chat")
    assert [v.name for v in chat.variants if chat.lets(v)] == ["best"]
    assert under(POLICY, ()) == POLICY


@given(weekday=st.integers(0, 6), minute=st.integers(0, 24 * 60 - 1))
def test_a_schedule_only_narrows(weekday, minute):
    now = under(POLICY, active(POLICY, weekday, minute))
    for model in now.models:
        before = POLICY.model(model.name)
        for variant in model.variants:
            assert before.lets(variant) >= model.lets(variant)


def test_it_reads_back_as_it_was_written():
    assert parse_policy(policy_to_yaml(POLICY), "p.yaml").schedules == POLICY.schedules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"22:00"', "22", 'must be a time of day such as "22:00"'),
        ('"22:00"', '"24:00"', "must be a time of day"),
        ("[mon, fri]", "[mon, friday]", "schedules.night.days"),
        ("{chat: {variants: [good, fast]}}", "{chta: {min_quality: 0.9}}", "is no model of this"),
        ("[good, fast]", "[good, quick]", "'quick' is no variant of 'chat'"),
    ],
)  # fmt: skip
def test_a_schedule_that_means_nothing_is_refused(old, new, message):
    assert old in TEXT
    with pytest.raises(PolicyError) as caught:
        parse_policy(TEXT.replace(old, new), "p.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{min_quality: 0.8}",
            "{min_quality: 0.96}",
            "schedules.office.models.chat: leaves none of",
        ),
        ("[best, fast]", "[fast]", "lunch.models.chat: leaves none of its variants beside office"),
        ("{chat: {min_quality: 0.8}}", "{chat: {}}", "says nothing"),
        ("{min_quality: 0.8}", "{variants: null}", "says nothing"),
    ],
)
def test_a_schedule_that_leaves_nobody_to_serve_is_refused(old, new, message):
    with pytest.raises(PolicyError) as caught:
        parse_policy(TEXT.replace(old, new), "p.yaml")
    assert message in str(caught.value)


def test_the_calendar_tells_what_the_clock_says():
    now = [time.struct_time((2026, 11, 30, 21, 59, 30, MON, 334, 0))]
    calendar = Calendar(POLICY, lambda: now[0])
    assert calendar.active == ()
    now[0] = time.struct_time((2026, 11, 30, 22, 0, 0, MON, 334, 0))
    # Not before it is in force: what failed is tried again.
    assert calendar.now(POLICY) == ("night",)
    assert calendar.active == ()
    calendar.commit(POLICY, ("night",))
    assert (calendar.read, calendar.active) == (POLICY, ("night",))
    assert under(POLICY, ("night",)).sha256 == POLICY.sha256
    assert calendar.now(replace(POLICY, schedules=())) == ()
