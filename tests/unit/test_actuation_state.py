import json
import os
import stat
import subprocess
import sys

import pytest

from controller.actuation.lease import Lease, canonical
from controller.actuation.remembered import Memory, Override
from controller.actuation.state_file import differ_as_allowed


def test_what_is_remembered_is_there_after_a_death(tmp_path):
    path = tmp_path / "state" / "actuator.json"
    memory = Memory(path)
    memory.remember("chat", "fast")
    memory.save()
    disk = {"name": "slow", "max_batch_size": 8}
    memory.overrides["slow"] = Override({**disk, "max_batch_size": 4}, {"a": 1}, disk)
    memory.save()
    again = Memory(path)
    assert again.targets == {"chat": "fast"}
    assert again.overrides == memory.overrides
    assert [entry.name for entry in path.parent.iterdir()] == ["actuator.json"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"targets": 3, "overrides": {}}', '{"targets": {}}', "\x00"),
        '{"targets": {}, "overrides": {}, "needs": {"v": {"0": Infinity}}}',
    ],
)
def test_a_spoilt_file_is_a_beginning_without_memory(tmp_path, text):
    path = tmp_path / "actuator.json"
    path.write_text(text)
    memory = Memory(path)
    assert (memory.targets, memory.overrides) == ({}, {})
    memory.remember("chat", "fast")
    memory.save()
    assert Memory(path).targets == {"chat": "fast"}


def test_an_override_of_an_unknown_shape_is_forgotten(tmp_path):
    path = tmp_path / "actuator.json"
    path.write_text('{"targets": {"chat": "a"}, "overrides": {"a": {"sent": {}}}}')
    assert Memory(path).overrides == {}


def test_an_override_that_could_run_code_is_not_believed(tmp_path):
    path = tmp_path / "actuator.json"
    disk = {"name": "a", "backend": "python"}
    evil = {**disk, "parameters": {"EXECUTION_ENV_PATH": {"string_value": "/evil.tar.gz"}}}
    found = {"sent": evil, "expected": {}, "disk": disk}
    path.write_text(json.dumps({"targets": {"chat": "a"}, "overrides": {"a": found}}))
    assert Memory(path).overrides == {}
    # Nor one whose own record of the folder is forged: what the server tells counts.
    assert not differ_as_allowed(evil, disk)
    assert differ_as_allowed({**disk, "max_batch_size": 4}, disk)


def test_the_file_is_for_its_owner_and_group_and_no_link_is_followed(tmp_path):
    path = tmp_path / "state" / "actuator.json"
    path.parent.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    path.with_name(".actuator.json.new").symlink_to(precious)
    memory = Memory(path)
    memory.remember("chat", "fast")
    memory.save()
    assert precious.read_text() == "mine"
    assert Memory(path).targets == {"chat": "fast"}
    assert not stat.S_IMODE(path.stat().st_mode) & 0o007


def test_a_pipe_or_an_endless_file_in_its_place_is_a_beginning_without_memory(tmp_path):
    path = tmp_path / "actuator.json"
    os.mkfifo(path)
    assert Memory(path).targets == {}
    path.unlink()
    path.symlink_to("/dev/zero")
    assert Memory(path).targets == {}


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    memory = Memory(tmp_path / "file" / "actuator.json")
    memory.remember("chat", "fast")
    memory.save()
    assert memory.targets == {"chat": "fast"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("localhost:8001", "127.0.0.1:8001"),
        ("[::1]:8001", "127.0.0.1:8001"),
        ("127.0.0.2:8001", "LOCALHOST:8001"),
        ("Triton.example:8001", "triton.example:8001"),
    ],
)
def test_the_spellings_of_one_address_are_one_lease(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize("other", ["127.0.0.1:8002", "10.0.0.1:8001", "triton:8001"])
def test_other_servers_have_other_leases(other):
    assert canonical("127.0.0.1:8001") != canonical(other)


_HOLD = """
import sys
from controller.actuation.lease import Lease
lease = Lease(sys.argv[1])
assert lease.acquire() is None
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lease_of_a_killed_process_is_free_and_of_a_live_one_names_it():
    address = "lease.example:1"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        lease = Lease(address)
        assert f"process {holder.pid} of user" in lease.acquire()
        assert not lease.held
        holder.kill()
        holder.wait()
        assert lease.acquire() is None
        assert lease.acquire() is None
        assert lease.held
        lease.release()
        assert not lease.held


@pytest.mark.parametrize(
    ("seen", "met"),
    [
        ({"max_batch_size": 16, "instance_group": [{"name": "a_0", "count": 2}]}, True),
        ({"max_batch_size": 16, "instance_group": [{"count": 2}], "version_policy": {}}, True),
        ({"max_batch_size": 8, "instance_group": [{"count": 2}]}, False),
        ({"max_batch_size": 16, "instance_group": [{"count": 3}]}, False),
        ({"max_batch_size": 16, "instance_group": [{"count": 2}, {"count": 1}]}, False),
        ({"max_batch_size": 16}, False),
        ({"max_batch_size": "16", "instance_group": [{"count": 2}]}, True),
    ],
)
def test_what_triton_adds_to_a_config_is_not_somebody_elses_change(seen, met):
    sent = {"max_batch_size": 16, "instance_group": [{"count": 2}], "dynamic_batching": {}}
    assert Override(sent, {}, {}).is_met_by(seen) is met


def test_models_taken_back_are_remembered_beside_the_journal(tmp_path):
    path = tmp_path / "alias.json"
    memory = Memory(path)
    assert memory.released == frozenset()
    memory.leave(frozenset({"chat"}))
    assert memory.unsaved
    memory.save()
    assert Memory(path).released == {"chat"}
