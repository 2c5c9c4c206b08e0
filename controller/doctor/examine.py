"""All checks, in the order in which one explains the next.

Owns that order and what is skipped when something more basic is missing. It must not print.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from controller.doctor.finding import Finding, fail, warn
from controller.doctor.folders import check_folders
from controller.doctor.host import (
    check_gpu,
    check_host_memory,
    check_journal,
    check_receiver,
    check_socket,
)
from controller.doctor.models import check_models
from controller.doctor.secrets import check_certificates, check_secrets, check_tls_files
from controller.doctor.server import (
    check_control,
    check_listeners,
    check_metrics,
    check_reach,
    check_traces,
)
from controller.policy.cautions import cautions
from controller.policy.model import GpuPolicy, JournalPolicy, Mode, Policy, TritonPolicy
from controller.policy.problems import format_path
from controller.telemetry.channel import open_client
from controller.telemetry.tls import CredentialsError


async def examine(
    policy: Policy | None,
    socket: Path,
    *,
    governor_runs: bool,
    fresh_age_s: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Return the findings of all checks; without a policy those for Triton's usual ports.

    Args:
        policy: what is governed, or is to be.
        socket: where a governor listens.
        governor_runs: whether one answers there.
        fresh_age_s: how long ago it saw that loading a variant reloads nothing.
    """
    triton = TritonPolicy("127.0.0.1:8001", "http://127.0.0.1:8002/metrics", None)
    if policy is not None:
        triton = policy.triton
    findings = await _server(triton, policy)
    models = () if policy is None else policy.models
    findings += await asyncio.to_thread(check_folders, triton, models, fresh_age_s or {})
    findings += await asyncio.to_thread(check_gpu, GpuPolicy() if policy is None else policy.gpu)
    limited = policy is not None and policy.memory.host_budget_bytes is not None
    findings.append(await asyncio.to_thread(check_host_memory, triton.grpc, limited=limited))
    findings.append(check_journal(JournalPolicy() if policy is None else policy.journal))
    findings.append(check_socket(socket))
    if policy is not None:
        findings += await asyncio.to_thread(_safety, policy)
    findings += check_receiver(triton.traces_listen, governor_runs=governor_runs)
    return findings


def _safety(policy: Policy) -> list[Finding]:
    """Return what of the policy is open to others, and the state of the files it names."""
    advice = "see docs/security.md"
    open_ones = [
        warn("exposure", f"{format_path(one.path)} {one.message}", advice)
        for one in cautions(policy)
    ]
    return [*open_ones, *check_tls_files(policy), *check_secrets(policy)]


async def _server(triton: TritonPolicy, policy: Policy | None) -> list[Finding]:
    try:
        client, headers = open_client(triton)
    except CredentialsError as error:
        return [fail("triton", str(error), "mend the file, or correct the policy")]
    async with client:
        reached, finding = await check_reach(client, headers, triton)
        findings = [finding]
        if reached:
            findings += await check_certificates(triton)
            findings += await check_control(client, headers, triton)
            findings += check_listeners(triton)
            findings += await check_traces(client, headers, triton)
            findings.append(await check_metrics(triton))
            models = () if policy is None else policy.models
            advised = {m.name for m in models if policy and policy.mode_of(m) is Mode.ADVISE}
            findings += await check_models(client, headers, models, frozenset(advised))
    return findings
