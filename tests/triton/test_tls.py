"""TLS and mutual TLS with a real Triton: switches, probes, refusals, and files that change."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, write_strangers
from governed import ALIAS, governed, make_policy, precompile, until
from repository import write_model

from controller.actuation.client import Fault, TritonControl, TritonError
from controller.doctor.examine import examine
from controller.doctor.finding import Level
from controller.policy.model import GpuPolicy, GpuSource, Policy, TlsPolicy
from controller.ports import Outcome
from controller.telemetry import channel
from controller.telemetry.triton_statistics import TritonStatistics

VARIANTS = ("slow", "fast")
SLEEP_S = 2.0
NAME = "triton.example"  # the servers' certificates are for it, and for 127.0.0.1


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tls") / "repository"
    write_model(root, "fast", tag=1, delay_s=0.001)
    write_model(root, "slow", tag=2, delay_s=0.002)
    write_model(root, "sleepy", tag=3, delay_s=SLEEP_S)
    precompile(root)
    return root


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    authority.issue("server", "127.0.0.1", NAME)
    authority.issue("governor", "governor.example")
    write_strangers(authority.folder, "stranger", "governor.example")
    return authority


def flags(authority: Authority, *more: str) -> list[str]:
    return [
        "--grpc-use-ssl=1",
        f"--grpc-server-cert={authority.folder / 'server.pem'}",
        f"--grpc-server-key={authority.folder / 'server.key'}",
        *more,
    ]


@pytest.fixture(scope="module")
def mutual(start_triton, root, authority):
    """A server that wants to know who calls."""
    more = ("--grpc-use-ssl-mutual=1", f"--grpc-root-cert={authority.file}")
    return start_triton(root, load_models=[*VARIANTS, "sleepy"], extra_args=flags(authority, *more))


def ours(authority: Authority, **changes: Any) -> TlsPolicy:
    return TlsPolicy(**{"ca_file": str(authority.file), **authority.files("governor"), **changes})


def policy_of(server, tls: TlsPolicy | None) -> Policy:
    policy = make_policy(server.grpc, *VARIANTS)
    return replace(policy, triton=replace(policy.triton, tls=tls))


async def test_a_governor_switches_and_probes_over_mutual_tls(mutual, authority):
    async with governed(policy_of(mutual, ours(authority))) as test:
        await test.ready()
        for name in ("slow", "fast"):
            record = await test.switched(name)
            assert record.outcome is Outcome.DONE, record
            assert await test.target() == name
        await test.actuator.probe("slow", 4)
        await test.outside.unload_model(ALIAS)


async def test_a_server_with_tls_alone_needs_no_certificate_of_ours(start_triton, root, authority):
    server = start_triton(root, load_models=VARIANTS, extra_args=flags(authority))
    async with governed(policy_of(server, TlsPolicy(str(authority.file)))) as test:
        await test.ready()
        assert (await test.switched("slow")).outcome is Outcome.DONE
    plain = await refusal(server, None)
    assert "wants TLS" in plain
    assert "triton.tls.ca_file" in plain
    server.stop()


async def refusal(server, tls: TlsPolicy | None, *, grpc: str | None = None) -> str:
    """What the operator is told of a server that cannot be asked."""
    triton = replace(policy_of(server, tls).triton, grpc=grpc or server.grpc)
    statistics = TritonStatistics(
        triton,
        clock=asyncio.get_running_loop().time,
        on_poll=lambda _: None,
        on_restart=lambda: None,
    )
    statistics.start()
    try:
        await until(lambda: statistics.ledger.failures > 0)
        assert not statistics.ledger.up
        return statistics.ledger.health(0.0).error or ""
    finally:
        await statistics.stop()


async def test_what_keeps_the_two_apart_is_told(mutual, authority):
    folder = authority.folder
    port = mutual.ports.grpc
    stranger = {
        "cert_file": str(folder / "stranger.pem"),
        "key_file": str(folder / "stranger.key"),
    }
    told = {
        "no TLS": await refusal(mutual, None),
        "no certificate": await refusal(mutual, TlsPolicy(str(authority.file))),
        "not ours": await refusal(mutual, ours(authority, **stranger)),
        "its CA": await refusal(mutual, ours(authority, ca_file=str(folder / "stranger_ca.pem"))),
        "its name": await refusal(mutual, ours(authority), grpc=f"localhost:{port}"),
        "not TLS": await refusal(mutual, ours(authority), grpc=mutual.http),
    }
    expected = {
        "no TLS": "wants TLS: name its certificate authority in triton.tls.ca_file",
        "no certificate": "wants a certificate of the governor: set triton.tls.cert_file",
        "not ours": "does not accept",
        "its CA": "does not vouch for the certificate",
        "its name": "is not for localhost",
        "not TLS": "does not speak TLS",
    }
    for case, words in expected.items():
        assert words in told[case], f"{case}: {told[case]}"
        assert len(told[case]) < 300, case  # whole, not cut off
    assert str(folder / "stranger.pem") in told["not ours"]


async def test_the_name_in_the_certificate_may_be_another_than_the_host(mutual, authority):
    tls = ours(authority, server_name=NAME)
    named = replace(policy_of(mutual, tls).triton, grpc=f"localhost:{mutual.ports.grpc}")
    control = TritonControl(named)
    try:
        assert await control.server_live(deadline_s=2.0)
    finally:
        await control.close()


async def answers(control: TritonControl) -> bool:
    try:
        return await control.server_live(deadline_s=2.0)
    except TritonError as error:
        if error.fault is not Fault.UNREACHABLE:
            raise
        return False


async def until_it(is_so) -> None:
    async with asyncio.timeout(15.0):
        while not await is_so():  # noqa: ASYNC110 - the server is asked
            await asyncio.sleep(0.05)


async def test_files_that_change_need_no_restart_and_break_no_call(mutual, authority, monkeypatch):
    monkeypatch.setattr(channel, "_LOOK_S", 0.05)
    monkeypatch.setattr(channel, "_LINGER_S", 0.1)
    folder = authority.folder
    tls = ours(authority, **authority.files("rotating"))
    control = TritonControl(policy_of(mutual, tls).triton)
    link = control._link
    try:
        # There is no file yet: nothing goes out, without TLS least of all.
        with pytest.raises(TritonError, match=r"rotating\.key|rotating\.pem") as refused:
            await control.server_live(deadline_s=2.0)
        assert not refused.value.may_have_happened
        write_strangers(folder, "rotating", "governor.example")
        await until(lambda: link.problem is None)
        assert not await answers(control)
        authority.issue("rotating", "governor.example")
        await until_it(lambda: answers(control))

        config = await control.model_config("sleepy", deadline_s=2.0)
        under_way = asyncio.create_task(control.probe(config, deadline_s=10.0))
        await asyncio.sleep(0.3)
        before = link.client
        authority.issue("rotating", "governor.example")
        await until(lambda: link.client is not before)
        assert not under_way.done()  # it is on the connection of before
        assert await answers(control)
        await under_way
        await until(lambda: not link._retired)
        with pytest.raises(Exception, match=r"[Cc]losed"):
            await before.is_server_live()

        # A key that belongs to another certificate: what works goes on, and it is told.
        good = link.client
        authority.mix_up("rotating", "governor")
        await until(lambda: link.problem is not None)
        assert "is not the private key of" in link.problem
        assert link.client is good
        assert await answers(control)

        # What is renewed is really used: a stranger's certificate ends the access.
        write_strangers(folder, "rotating", "governor.example")
        await until(lambda: link.client is not good)
        assert not await answers(control)
    finally:
        await control.close()


async def test_the_doctor_looks_at_the_certificates(mutual, authority, tmp_path):
    async def levels(tls: TlsPolicy) -> dict[str, tuple[Level, str]]:
        policy = replace(policy_of(mutual, tls), gpu=GpuPolicy(GpuSource.NONE))
        found = await examine(policy, tmp_path / "governor.sock", governor_runs=True)
        return {finding.name: (finding.level, finding.message) for finding in found}

    found = await levels(ours(authority))
    assert found["triton"][0] is Level.WARN  # 2.51 is older than the fixes of 25.07
    assert found["tls"][0] is Level.OK, found["tls"]
    authority.issue_brief("brief", "governor.example")
    level, message = (await levels(ours(authority, **authority.files("brief"))))["tls"]
    assert level is Level.WARN
    assert "ends in 3 days" in message
    wrong = ours(authority, ca_file=str(authority.folder / "stranger_ca.pem"))
    level, message = (await levels(wrong))["triton"]
    assert level is Level.FAIL
    assert "does not vouch" in message
