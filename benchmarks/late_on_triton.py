"""Late binding beside an alias on a real Triton whose models take a GPU's time.

    python benchmarks/late_on_triton.py [--ladder bert-t4] [--trace azure-code ...]
                                        [--start 0] [--seconds 60] [--limit-ms 60] [--slower 1.0]
                                        [--rivals backlog,model-switching-tuned] [--seed 1]
                                        [--plot FILE]

The server, the governor and the dispatcher are the real ones. The models are not
(`device_models.py`): they leave the host's processors as free as beside a GPU, which the demo's
models, computed by these same processors, do not. The same open-loop requests, scaled as in a
replay, go to every arm; in time is what the client saw. Rivals know the ladder, read the metrics
page at their own interval and move the alias with one call, nothing checked.

*told held*: the share of requests, by the client's clock, within the 99th percentile that the
governor's status told when they were sent (looked at twenty times a second); bound late, where each
is told of its own, as the dispatcher counts them itself. *simulated*: effective quality and share
in time of the same policy with the same requests in the simulated Triton (`governor replay`), which
knows the ladder alone.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from arms_plot import Served, draw
from device_models import ALIAS, DEADLINE_S, WARMUP_S, Answers, ask, point, write_model
from numpy.typing import NDArray
from rival_driver import Place, RivalDriver

from controller.actuation.dispatcher_folder import write
from controller.demo.governed import Choice, Governor, policy_text
from controller.embedded.install import install
from controller.embedded.server import free_ports, start_server
from controller.policy.model import DispatcherPolicy, ModelPolicy, Objective, VariantPolicy
from controller.twin.contest import COLD, LATE_COLD, RIVALS
from controller.twin.ladder import TwinVariant, load_ladder
from controller.twin.plan import Plan
from controller.twin.replay import run_one
from controller.twin.scoring import Score
from controller.twin.trace import Trace, load_trace

DATA = Path(__file__).with_name("data")
DISPATCHER = "service_dispatcher"
LOOK_S = 0.05
MOST_ROWS = 32


@dataclass(frozen=True)
class Play:
    """What is served, really and in the simulation."""

    plan: Plan
    made: Trace  # scaled to the ladder
    seed: int
    due_s: NDArray[np.float64]  # those of the warm-up before 0

    @property
    def variants(self) -> Sequence[TwinVariant]:
        """Return the variants that meet the objective at all."""
        return self.plan.variants

    @property
    def limit_ms(self) -> float:
        """Return the objective."""
        return self.plan.limit_s * 1e3

    def simulated(self, policy: str) -> Score:
        """Return what a policy does with the requests in the simulation."""
        return run_one(self.plan, self.made, policy, self.seed).score


class Told:
    """Watches what the governor tells of the model's requests, from a thread."""

    def __init__(self, governor: Governor, *, late: bool) -> None:
        self._governor = governor
        self._late = late
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._told: list[tuple[float, float]] = []  # (monotonic seconds, latency in seconds)
        self._coverage: float | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S * (10.0 if self._late else 1.0)):
            model = self._governor.model()
            if model is None:
                continue
            self._coverage = model["calibration"]["coverage"]
            if model["predicted_p99_ms"] is not None:
                self._told.append((time.monotonic(), model["predicted_p99_ms"] / 1e3))

    @property
    def coverage(self) -> float | None:
        """Return the share of requests within what was told of them, as the governor counts it."""
        return self._coverage

    def held(self, answers: Answers) -> float | None:
        """Return the same by the client's clock; None: of single requests it is not known."""
        if self._late or not self._told:
            return None
        at_s, told_s = np.array(self._told).T
        last = np.searchsorted(at_s, answers.zero_s + answers.due_s, side="right") - 1
        known = last >= 0
        return float((answers.latency_s[known] <= told_s[last[known]]).mean())


def main() -> int:
    """Run every arm and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ladder", default="bert-t4")
    parser.add_argument("--trace", nargs="+", default=["azure-code"])
    parser.add_argument("--limit-ms", type=float, default=60.0)
    parser.add_argument("--start", type=float, default=0.0, help="second of the trace")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slower", type=float, default=1.0, help="every time of the ladder, times")
    parser.add_argument("--rivals", default="backlog,model-switching-tuned")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    rivals = args.rivals.split(",")
    drawn: dict[str, dict[str, Served]] = {}
    for name in args.trace:
        play = _load(args, name)
        print(f"\n{args.ladder}, {name} from {args.start:g} s, {args.limit_ms:g} ms:\n")
        head = "arm | effective quality | in time | failed | mean quality | p50 | p99 | client"
        print(f"| {head} | told held | simulated |\n| --- |{' ---: |' * 9}", flush=True)
        with tempfile.TemporaryDirectory(prefix="tg-late-", dir="/tmp") as folder:
            found = asyncio.run(_arms(Path(folder), play, rivals))
        drawn[name] = found
    if args.plot is not None:
        draw(args.plot, drawn, args.seconds, args.limit_ms)
    return 0


def _load(args: argparse.Namespace, name: str) -> Play:
    ladder = load_ladder(DATA / f"{args.ladder}.yaml")
    trace = load_trace(DATA / f"{name}.csv").window(args.start, args.start + args.seconds)
    slower = tuple(replace(v, table_s=v.table_s * args.slower) for v in ladder.variants)
    # A sleep is punctual, unlike a GPU.
    plan = Plan(
        trace,
        replace(ladder, variants=slower),
        args.limit_ms / 1e3,
        max_batch=MOST_ROWS,
        noise=0.01,
    )
    made = plan.load()
    warm = np.sort(np.random.default_rng(args.seed).random(100)) * WARMUP_S - WARMUP_S
    due_s = np.concatenate([warm, made.arrivals_s(args.seed)])
    return Play(plan, made, args.seed, due_s)


async def _arms(folder: Path, play: Play, rivals: Sequence[str]) -> dict[str, Served]:
    """Let everybody serve the same requests, and tell of each."""
    found: dict[str, Served] = {}
    variants, due_s = play.variants, play.due_s
    root = folder / "models"
    for tag, variant in enumerate(variants):
        write_model(root, variant, tag, folder / "device")
    choices = [Choice(v.name, v.name, v.quality) for v in variants]
    key_file = folder / "key"
    model = ModelPolicy(
        ALIAS,
        Objective(play.plan.limit_s, 99.0),
        tuple(VariantPolicy(v.name, v.name, v.quality) for v in variants),
        client_max_batch=1,
        dispatcher=DispatcherPolicy(DISPATCHER, str(key_file)),
    )
    list(write([model], root))
    traces = f"127.0.0.1:{free_ports().http}"
    with start_server(
        install(lambda *_: None),
        root,
        log_file=folder / "triton.log",
        otlp_url=f"http://{traces}/v1/traces",
        trace_rate=None,
        load_models=[v.name for v in variants],
    ) as server:
        told = {
            "grpc": server.grpc,
            "metrics_url": server.metrics_url,
            "traces": traces,
            "model": ALIAS,
            "objective_ms": play.limit_ms,
            "percentile": 99.0,
            "client_max_batch": 1,
            "choices": choices,
        }
        fastest = min(variants, key=lambda v: v.table_s[-1] / len(v.table_s))
        best = max(variants, key=lambda v: v.quality)
        for policy, variant in (("fixed:best", best), ("fixed:fastest", fastest)):
            await point(server.grpc, variant.name)
            arm = f"fixed:{variant.name}"
            found[arm] = _tell(arm, await ask(server.grpc, due_s), play, policy)
        setting = play.plan.setting()
        place = Place(server.grpc, server.metrics_url, ALIAS, [v.name for v in variants], 1)
        for name in filter(None, rivals):
            await point(server.grpc, variants[setting.fastest].name)
            with RivalDriver(place, RIVALS[name](setting), setting.fastest):
                found[name] = _tell(name, await ask(server.grpc, due_s), play, name)
        for arm, policy, dispatcher in (
            ("governor", COLD, None),
            ("governor:late", LATE_COLD, (DISPATCHER, key_file)),
        ):
            own = folder / arm.replace(":", "-")
            with Governor(policy_text(**told, dispatcher=dispatcher), own) as governor:
                await asyncio.to_thread(governor.wait_until_serving, late=dispatcher is not None)
                with Told(governor, late=dispatcher is not None) as told_then:
                    answers = await ask(server.grpc, due_s)
                    held = told_then.held(answers), told_then.coverage
                found[arm] = _tell(arm, answers, play, policy, held)
    return found


def _tell(
    arm: str, answers: Answers, play: Play, policy: str, held: Sequence[float | None] = ()
) -> Served:
    """Print a line of an arm; return what is drawn of it.

    `held`: shares of requests within what was told of them, by the client's clock and Triton's.
    """
    quality = np.array([v.quality for v in play.variants])
    answered = np.isfinite(answers.latency_s)
    met = answered & (answers.latency_s <= play.plan.limit_s)
    got = np.where(answered, quality[answers.variant], 0.0)
    p50, p99 = np.quantile(np.minimum(answers.latency_s, DEADLINE_S), [0.5, 0.99]) * 1e3
    twin = play.simulated(policy)
    print(
        f"| {arm} | {(got * met).mean():.4f} | {met.mean():.2%} "
        f"| {int((~answered).sum())} of {len(met)} | {got[answered].mean():.4f} "
        f"| {p50:.0f} ms | {p99:.0f} ms | {answers.late_sent_s * 1e3:.1f} ms "
        f"| {' / '.join(f'{share:.2%}' for share in held if share is not None)} "
        f"| {twin.effective_quality:.4f}, {twin.slo_attainment:.2%} |",
        flush=True,
    )
    return Served(answers.due_s, answers.latency_s * 1e3, got * met)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
