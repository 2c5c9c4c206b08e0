"""Variants that cannot be asked, that fail or do not answer, and who is served all the same."""

from controller.dispatch.late_binding import Dispatcher
from controller.dispatch.plan import Plan

# A batch of the best takes 40 ms however full, of the fast 5.
PLAN = Plan(("best", "fast"), (0.9, 0.8), ((0.04,) * 8, (0.005,) * 8), (1.1, 1.1), 0.1)
FAST = Plan(("fast",), (0.8,), ((0.005,) * 8,), (1.1,), 0.1)


def waiting(*came_s: float, plan: Plan = PLAN) -> Dispatcher:
    """Return a dispatcher with requests that came then."""
    one = Dispatcher(plan)
    one.set_plan(plan)
    for at, when_s in enumerate(came_s):
        one.come(when_s, 1, None, at)
    return one


def test_who_does_not_fit_where_a_batch_goes_instead_waits_again_in_front():
    plan = PLAN._replace(took_s=((0.04,) * 8, (0.005,) * 3))
    one = waiting(*([0.0] * 6), plan=plan)
    one.come(0.01, 1, None, "later")
    batch = one.take(0.02)
    assert (batch.name, batch.rows) == ("best", 7)
    other = one.again(batch)
    assert (other.name, [r.payload for r in other.requests]) == ("fast", [0, 1, 2])
    assert one.waiting == 4
    assert [r.payload for r in one.take(0.03).requests] == [3, 4, 5]
    assert [r.payload for r in one.take(0.03).requests] == ["later"]
    assert one._rows == 0


def test_who_cannot_be_asked_is_left_out_for_a_second():
    one = waiting(0.0, 0.0)
    batch = one.take(0.0)
    other = one.again(batch)
    assert (batch.name, other.name) == ("best", "fast")
    assert one.again(other) is None, "nobody is left"
    one = waiting(0.0)
    one.again(one.take(0.0))
    one.come(0.5, 1)
    assert one.take(0.5).name == "fast"
    one.come(1.5, 1)
    assert one.take(1.5).name == "best"


def test_who_fails_again_and_again_is_left_out_for_ever_longer_until_it_answers():
    one, at_s = Dispatcher(PLAN), 0.0
    for out_s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        one.come(at_s, 1)
        batch = one.take(at_s)
        assert batch.name == "best"
        other = one.again(batch, "out of memory")
        assert one.shunned(at_s) == {"best": "out of memory"}
        one.ended(other, at_s + 0.004)
        assert one.shunned(at_s + out_s - 0.01) == {"best": "out of memory"}
        assert one.shunned(at_s + out_s) == {}
        at_s += out_s
    one.come(at_s, 1)
    one.ended(one.take(at_s), at_s + 0.04)
    one.come(at_s + 1.0, 1)
    one.again(one.take(at_s + 1.0))
    assert one.shunned(at_s + 2.0) == {}, "it had answered meanwhile"


def test_who_was_not_to_blame_or_was_away_and_is_planned_with_again_is_asked_again():
    one = waiting(0.0)
    one.again(one.take(0.0))
    one.pardon("best")
    assert one.shunned(0.1) == {}
    one.come(0.2, 1)
    one.again(one.take(0.2))
    one.set_plan(FAST)
    assert one.shunned(0.3).keys() == {"best"}
    one.set_plan(PLAN)
    assert one.shunned(0.3) == {}


def test_the_requests_of_a_batch_that_failed_are_asked_for_one_by_one():
    one = waiting(0.0, 0.0, 0.01)
    batch = one.take(0.01)
    parts = one.apart(batch)
    assert [part.requests for part in parts] == [(request,) for request in batch.requests]
    assert {part.name for part in parts} == {"best"}
    one.ended(parts[0], 0.05, failed=True)
    for part in parts[1:]:
        one.ended(part, 0.09)
    assert (one.completed, one.failed) == (2, 1)


def test_a_batch_that_is_not_answered_is_given_up_and_its_variant_left_for_a_minute():
    one = waiting(0.0)
    batch = one.take(0.0)
    assert not one.gives_up(batch, 9.9)
    assert one.gives_up(batch, 10.1)
    assert one.shunned(69.0) == {"best": "it did not answer"}
    assert one.shunned(70.2) == {}
    # Others that are answered meanwhile change nothing.
    one = waiting(0.0)
    slow = one.take(0.0)
    one.come(9.9, 1)
    one.ended(one.take(9.9, slow), 9.95)
    assert one.gives_up(slow, 10.1)
    # What is planned to take long may.
    slow = Dispatcher(PLAN._replace(names=("slow", "fast"), took_s=((2.0,) * 8, (0.004,) * 8)))
    slow.come(0.0, 1)
    batch = slow.take(0.0)._replace(name="slow")
    assert not slow.gives_up(batch, 39.0)
    assert slow.gives_up(batch, 41.0)
    # And of one that the plan does not know nothing can be said for long.
    assert not slow.gives_up(batch._replace(name="unknown"), 59.0)


def test_nobody_waits_where_all_are_sent_away():
    one = waiting(0.0, 0.0)
    assert [request.payload for request in one.send_away()] == [0, 1]
    assert (one.waiting, one.failed, one.take(1.0)) == (0, 2, None)
