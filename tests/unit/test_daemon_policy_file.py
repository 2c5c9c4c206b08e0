"""The policy's file: an edit is noticed however it is made, a bad one changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.daemon import policy_file
from controller.daemon.policy_file import PolicyFile
from controller.policy.load import load_policy
from controller.policy.model import Policy

TEXT = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  digits:
    objective: {latency: 60ms, percentile: 99}
    variants: {wide: {model: digits_wide, quality: 0.927}}
"""


class Followed:
    """A followed file, and what came of it."""

    def __init__(self, path: Path) -> None:
        self.policy = load_policy(path)
        self.taken: list[float] = []
        self.refused: list[str] = []
        self.note: str | None = None
        self.file = PolicyFile(
            path, in_force=lambda: self.policy.sha256, take=self._take, refuse=self.refused.append
        )

    def _take(self, policy: Policy) -> str | None:
        self.policy = policy
        self.taken.append(policy.models[0].objective.latency_s)
        return self.note

    async def until(self, what, within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while not what():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.005)


@pytest.fixture
async def followed(tmp_path: Path, monkeypatch) -> AsyncIterator[Followed]:
    monkeypatch.setattr(policy_file, "_LOOK_S", 0.02)
    path = tmp_path / "policy.yaml"
    path.write_text(TEXT)
    one = Followed(path)
    task = asyncio.create_task(one.file.follow())
    await asyncio.sleep(0.1)
    assert not one.taken  # what is in force is not taken again
    yield one
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def edited(latency: str) -> str:
    return TEXT.replace("60ms", latency)


async def test_an_edit_in_place_a_rename_and_a_turned_link_are_noticed(followed, tmp_path) -> None:
    path = followed.file.path
    path.write_text(edited("70ms"))
    await followed.until(lambda: followed.taken == [0.07])
    (tmp_path / "new").write_text(edited("80ms"))
    (tmp_path / "new").rename(path)
    await followed.until(lambda: followed.taken == [0.07, 0.08])
    for name, latency in (("a", "90ms"), ("b", "100ms")):
        (tmp_path / name).write_text(edited(latency))
        (tmp_path / "link").symlink_to(name)
        (tmp_path / "link").rename(path)
        await followed.until(lambda: followed.policy.sha256 == load_policy(path).sha256)
    assert followed.taken == [0.07, 0.08, 0.09, 0.1]
    assert not followed.refused


async def test_a_bad_edit_is_told_once_and_forgotten_when_it_is_mended(followed) -> None:
    followed.file.path.write_text(edited("sixty"))
    await followed.until(lambda: followed.refused)
    assert "policy.yaml:5:" in (followed.file.error or "")
    await asyncio.sleep(0.1)
    assert len(followed.refused) == 1
    assert not followed.taken
    followed.file.path.write_text(TEXT)  # what is in force
    await followed.until(lambda: followed.file.error is None)
    assert not followed.taken


async def test_what_is_said_of_the_policy_in_force_outlives_a_bad_edit(followed) -> None:
    followed.note = "taken, but mqtt changed"
    good = edited("70ms")
    followed.file.path.write_text(good)
    await followed.until(lambda: followed.file.error == "taken, but mqtt changed")
    followed.file.path.write_text("version: [")
    await followed.until(lambda: (followed.file.error or "").startswith("refused: "))
    followed.file.path.write_text(good)
    await followed.until(lambda: followed.file.error == "taken, but mqtt changed")
    assert followed.taken == [0.07]


async def test_a_file_that_is_gone_for_a_while_changes_nothing(followed) -> None:
    followed.file.path.unlink()
    await asyncio.sleep(0.1)
    assert followed.file.error is None
    followed.file.path.write_text(edited("70ms"))
    await followed.until(lambda: followed.taken == [0.07])


async def test_what_was_read_on_demand_is_not_read_again_for_having_changed(followed) -> None:
    followed.file.path.write_text(edited("sixty"))
    followed.file.read()  # SIGHUP, right after the edit
    await asyncio.sleep(0.15)
    assert len(followed.refused) == 1


async def test_an_accident_in_taking_one_is_told_and_does_not_end_the_following(followed) -> None:
    followed.file._take = None
    followed.file.path.write_text(edited("70ms"))
    await followed.until(lambda: (followed.file.error or "").startswith("not taken: "))
    followed.file._take = followed._take
    followed.file.path.write_text(edited("80ms"))
    await followed.until(lambda: followed.taken == [0.08])


async def test_what_was_read_before_somebody_asked_is_not_taken_after_it(
    followed, monkeypatch
) -> None:
    """An edit, another one, and SIGHUP, while the first is still being read in a thread."""
    path, reading, go_on = followed.file.path, threading.Event(), threading.Event()
    read = policy_file._read

    def slow(*of: object) -> object:
        found = read(*of)
        reading.set()
        go_on.wait(5.0)
        return found

    monkeypatch.setattr(policy_file, "_read", slow)
    path.write_text(edited("70ms"))
    await followed.until(reading.is_set)
    monkeypatch.setattr(policy_file, "_read", read)
    path.write_text(edited("80ms"))
    followed.file.read()
    go_on.set()
    await asyncio.sleep(0.2)
    assert followed.taken == [0.08]


async def test_an_edit_between_the_start_and_the_first_look_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(TEXT)
    one = Followed(path)
    path.write_text(edited("70ms"))
    task = asyncio.create_task(one.file.follow())
    await one.until(lambda: one.taken == [0.07])
    task.cancel()


PART = "include: [base.yaml]\nmodels: {digits: {objective: {latency: LATENCY}}}\n"


async def test_an_edit_of_an_included_file_is_taken_within_a_second(tmp_path: Path) -> None:
    """With the real pace of looking."""
    (tmp_path / "base.yaml").write_text(TEXT)
    (tmp_path / "box.yaml").write_text("include: [base.yaml]\n")
    one = Followed(tmp_path / "box.yaml")
    task = asyncio.create_task(one.file.follow())
    await asyncio.sleep(0.7)
    for latency, seconds in (("70ms", 0.07), ("80ms", 0.08)):
        began_s = time.monotonic()
        (tmp_path / "fresh").write_text(edited(latency))
        (tmp_path / "fresh").rename(tmp_path / "base.yaml")
        await one.until(lambda wanted=seconds: one.taken[-1:] == [wanted])
        assert time.monotonic() - began_s < 1.0
    assert one.taken == [0.07, 0.08]
    task.cancel()


async def test_a_broken_or_missing_included_file_is_told_once_and_seen_when_it_is_mended(
    followed, tmp_path
) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(TEXT)
    followed.file.path.write_text(PART.replace("LATENCY", "70ms"))
    await followed.until(lambda: followed.taken == [0.07])
    base.write_text(edited("sixty").replace("version: 1", "version: 2"))
    await followed.until(lambda: followed.refused)
    assert f"{base}:1:10: version: must be 1" in (followed.file.error or "")
    base.unlink()
    await followed.until(lambda: len(followed.refused) == 2)
    assert "'base.yaml' cannot be read" in (followed.file.error or "")
    await asyncio.sleep(0.1)
    assert len(followed.refused) == 2
    base.write_text(TEXT)  # what is in force
    await followed.until(lambda: followed.file.error is None)
    assert followed.taken == [0.07]
    followed.file.path.write_text(edited("80ms"))  # includes nothing any more
    await followed.until(lambda: followed.taken == [0.07, 0.08])
    base.write_text("version: [")
    await asyncio.sleep(0.1)
    assert followed.file.error is None


async def test_the_policy_is_that_of_the_host_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(TEXT)
    one = Followed(path)
    one.file = PolicyFile(
        path,
        host="h",
        in_force=lambda: one.policy.sha256,
        take=one._take,
        refuse=one.refused.append,
    )
    path.write_text(TEXT + "hosts: {h: {models: {digits: {objective: {latency: 90ms}}}}}\n")
    one.file.read()
    assert one.taken == [0.09]
