"""The load generator, against a channel that answers what it likes."""

from types import SimpleNamespace

import pytest

from controller.demo import generator
from controller.demo.channel import ChannelError
from controller.demo.generator import _closed


class _Channel:
    """Answers each call at the second poll after it."""

    def __init__(self, *, mute=False):
        self.mute = mute
        self.open = {}
        self.calls = 0

    def send(self, request):
        self.calls += 1
        self.open[self.calls] = 2
        return self.calls

    def poll(self, timeout_s):
        answers = []
        for call in list(self.open):
            self.open[call] -= 1
            if self.open[call] == 0 and not self.mute:
                del self.open[call]
                answers.append(SimpleNamespace(call=call, message=b"x", error=None))
        return answers


def _load(channel):
    job = {"row_weights": [0.5, 0.5], "deadline_s": 0.05, "model": "m"}
    return SimpleNamespace(
        channel=channel, job=job, sizes=[1, 2], pick=lambda rows, _: (rows, None)
    )


def test_a_measurement_waits_for_its_last_answers_before_it_hangs_up():
    channel = _Channel()
    found = _closed(_load(channel), concurrency=5, duration_s=0.05, seed=1)
    assert found["requests_rps"] > 0.0
    assert channel.open == {}


def test_a_server_that_answers_nothing_is_no_reason_to_wait_for_ever():
    with pytest.raises(ChannelError, match="answered nothing"):
        _closed(_load(_Channel(mute=True)), concurrency=5, duration_s=0.05, seed=1)


def test_late_answers_are_not_waited_for_beyond_the_deadline(monkeypatch):
    channel = _Channel()
    poll, began = channel.poll, []

    def silent_from_the_end_on(timeout_s):
        began.append(generator.time.monotonic())
        channel.mute = began[-1] - began[0] > 0.04
        return poll(timeout_s)

    monkeypatch.setattr(channel, "poll", silent_from_the_end_on)
    _closed(_load(channel), concurrency=5, duration_s=0.05, seed=1)
    assert channel.open
    assert began[-1] - began[0] < 1.0
