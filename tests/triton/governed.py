"""An actuator at work on a test server, and the questions that tests ask it."""

import asyncio
import compileall
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc.aio as triton
from google.protobuf.json_format import MessageToDict

from controller.actuation import alias as shape
from controller.actuation.actuator import Actuator
from controller.planning.decision import Decision, Reason
from controller.policy.model import (
    ModelPolicy,
    Objective,
    Policy,
    StabilityPolicy,
    TritonPolicy,
    VariantPolicy,
)
from controller.ports import ActionRecord, Outcome
from controller.telemetry.channel import open_client
from controller.telemetry.hub import Telemetry

ALIAS = "chat"


def make_policy(grpc: str, *variants: str, **settings: Any) -> Policy:
    """The policy of one alias; variants from the best to the fastest, by Triton's names."""
    model = {"client_max_batch": 8} | {
        key: settings.pop(key) for key in ("client_max_batch", "alias") if key in settings
    }
    steps = tuple(
        VariantPolicy(name, name, 0.9 - 0.05 * rank) for rank, name in enumerate(variants)
    )
    return Policy(
        triton=TritonPolicy(grpc, None, None),
        models=(ModelPolicy(ALIAS, Objective(0.06, 99.0), steps, **model),),
        stability=StabilityPolicy(foreign_hold_s=settings.pop("foreign_hold_s", 600.0)),
        **settings,
    )


def precompile(root: Path) -> None:
    """Do what a model's first import does to its folder, so that loads are warm at once."""
    compileall.compile_dir(str(root), quiet=1)


def kill_model(server_pid: int, model: str) -> None:
    """Kill the processes in which a model of the Python backend runs."""
    victims = [
        one
        for one in psutil.Process(server_pid).children(recursive=True)
        if any(model in Path(word).parts for word in one.cmdline())
    ]
    assert victims
    for one in victims:
        one.kill()


async def until(
    true: Callable[[], Any], *, timeout_s: float = 15.0, what: str | Callable[[], Any] = ""
) -> float:
    """Wait until something holds and return how long that took."""
    started_s = time.monotonic()
    while not true():
        late = time.monotonic() - started_s > timeout_s
        assert not late, f"not within {timeout_s} s: {what() if callable(what) else what}"
        await asyncio.sleep(0.005)
    return time.monotonic() - started_s


class Governed:
    """What a test sees of an actuator and of the server behind it."""

    def __init__(
        self,
        actuator: Actuator,
        records: list[ActionRecord],
        outside: triton.InferenceServerClient,
    ) -> None:
        self.actuator, self.records = actuator, records
        self.outside = outside  # somebody else on the same server
        self._sequence = 0

    @property
    def reading(self):
        return self.actuator.readings(time.monotonic())[ALIAS]

    @property
    def server(self):
        return self.actuator._keeper.server

    def variant(self, name: str):
        return self.server.variants[name]

    def of_kind(self, kind: str) -> list[ActionRecord]:
        return [record for record in self.records if record.kind == kind]

    async def ready(self, *, without: tuple[str, ...] = (), timeout_s: float = 30.0) -> None:
        """Wait until the alias serves and every variant but some can be switched to."""

        def all_set() -> bool:
            now = self.reading
            idle = not now.switching and self.server.aliases[ALIAS].proof is None
            warm = all(
                self.variant(name).warm or name == now.serving
                for name in self.server.variants
                if name not in without
            )
            usable = now.unusable <= set(without) and self.actuator.capability.can_act
            return bool(now.ready and idle and warm and usable)

        await until(all_set, timeout_s=timeout_s, what=self.actuator.describe)

    async def switch(self, target: str, *, urgent: bool = False) -> ActionRecord:
        self._sequence += 1
        return await self.actuator.apply(decision(target, urgent=urgent, sequence=self._sequence))

    async def switch_when_free(self, target: str) -> ActionRecord:
        """Switch as the daemon does: what is busy is asked again a little later."""
        while True:
            record = await self.switch(target)
            if record.outcome is not Outcome.BUSY:
                return record
            await asyncio.sleep(0.005)

    async def switched(self, target: str) -> ActionRecord:
        """Switch, wait for the proof and return the final record."""
        count = len(self.records)
        first = await self.switch_when_free(target)
        assert first.outcome in (Outcome.DONE, Outcome.UNKNOWN), first

        def final() -> list[ActionRecord]:
            return [r for r in self.records[count:] if r.kind == "switch"]

        await until(final, what=f"final record of the switch to {target}")
        return final()[0]

    async def config(self, model: str = ALIAS) -> dict[str, Any]:
        answer = await self.outside.get_model_config(model)
        return MessageToDict(answer.config, preserving_proto_field_name=True)

    async def target(self) -> str | None:
        """Where the server says the alias points."""
        return shape.target_of(await self.config())


def decision(target: str, *, urgent: bool = False, sequence: int = 1) -> Decision:
    return Decision(
        now_s=time.monotonic(),
        sequence=sequence,
        model=ALIAS,
        serving=None,
        desired=target,
        target=target,
        reason=Reason.ESCAPE if urgent else Reason.BEST_FEASIBLE,
        candidates=(),
        rate_rps=0.0,
        rate_p95_rps=0.0,
        rows_per_request=1.0,
        backlog_requests=0,
        backlog_s=0.0,
        drift_ratio=1.0,
        urgent=urgent,
    )


def _outside(policy: TritonPolicy, server: str | None) -> triton.InferenceServerClient:
    """Somebody else's client, without our key; of a server without TLS, without our options, too.

    With the same options gRPC would have both use one connection.
    """
    address = server or policy.grpc
    if policy.tls is None:
        return triton.InferenceServerClient(address)
    return open_client(replace(policy, grpc=address, restricted_key_file=None))[0]


@contextlib.asynccontextmanager
async def governed(
    policy: Policy,
    *,
    order: tuple[str, ...] | None = None,
    server: str | None = None,
    **settings: Any,
) -> AsyncIterator[Governed]:
    """Run an actuator beside the watch that counts requests for it, as the daemon does.

    `server` is the address behind a proxy that the policy may name.
    """
    records: list[ActionRecord] = []
    telemetry = Telemetry(policy)
    actuator = Actuator(policy, on_record=records.append, counted=telemetry.counted, **settings)
    telemetry.on_counted = actuator.heed
    if order is not None:
        actuator.set_speed_order(ALIAS, order)
    await telemetry.start()
    await actuator.start()
    test = Governed(actuator, records, _outside(policy.triton, server))
    try:
        yield test
    finally:
        await actuator.stop()
        await telemetry.stop()
        await test.outside.close()
