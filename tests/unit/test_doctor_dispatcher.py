"""What the doctor says of a model's dispatcher."""

from dataclasses import replace

import pytest

from controller.doctor.finding import Level
from controller.doctor.models import _dispatcher
from controller.policy.model import (
    DispatcherPolicy,
    ModelPolicy,
    Objective,
    QueuePolicy,
    VariantPolicy,
)

INDEX = {"late": ("READY", "")}


@pytest.fixture
def model(tmp_path) -> ModelPolicy:
    (tmp_path / "key").write_text("0123456789abcdef")
    return ModelPolicy(
        "chat",
        Objective(0.1, 99.0),
        (VariantPolicy("best", "b", 0.9), VariantPolicy("fast", "f", 0.8)),
        queue=QueuePolicy(timeout_s=2.0),
        dispatcher=DispatcherPolicy("late", str(tmp_path / "key")),
    )


def levels(model: ModelPolicy, index=None) -> list[Level]:
    return [finding.level for finding in _dispatcher(model, INDEX if index is None else index)]


def test_nothing_is_said_where_there_is_none(model):
    assert levels(replace(model, dispatcher=None)) == []


def test_one_that_is_there_with_its_key_is_well(model):
    assert levels(model) == [Level.OK]


def test_one_that_is_not_in_the_repository_or_has_no_key_is_not(model, tmp_path):
    assert levels(model, {}) == [Level.FAIL]
    (tmp_path / "key").unlink()
    assert levels(model) == [Level.FAIL]


@pytest.mark.parametrize("queue", [None, QueuePolicy(), QueuePolicy(max_delay_s=0.01)])
def test_a_queue_without_an_end_is_warned_of(model, queue):
    assert levels(replace(model, queue=queue)) == [Level.OK, Level.WARN]
    assert levels(replace(model, queue=QueuePolicy(max_size=1000))) == [Level.OK]
