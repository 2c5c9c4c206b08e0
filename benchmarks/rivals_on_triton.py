"""The governor beside rivals and fixed variants on a real Triton, under recorded load.

    python benchmarks/rivals_on_triton.py --trace A.csv [B.csv ...] [--start 300] [--seconds 60]
        [--seed 1] [--rivals backlog,model-switching-tuned] [--json FILE] [--plot FILE]

Every arm gets the same requests at the same times on the embedded server. Rivals get a profile of
every variant by batch size, measured just before; they read the server's metrics page at their
own interval and move the alias with one call, nothing checked. The load is scaled as in a replay:
its 99th percentile to 1.67 times what the best variant gets through, its highest to 0.95 times
what the fastest does.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from arms_plot import Served, draw
from batches import difference, totals
from rich.console import Console
from rival_driver import Place, RivalDriver
from tritonclient import grpc as triton

from controller.demo import arms, scores
from controller.demo.arms import Arm
from controller.demo.bench import Bench, open_bench
from controller.demo.live import Plain
from controller.demo.load import LoadRun
from controller.demo.records import Records
from controller.demo.scenario import Schedule, Shape
from controller.demo.session import WARMUP_S, prepare
from controller.twin.contest import RIVALS
from controller.twin.ladder import TwinVariant, interpolate
from controller.twin.rivals import Rival, Setting
from controller.twin.trace import Trace, load_trace

_PROFILE_CALLS = 20
Arms = dict[str, tuple[scores.Score, Records, int]]


def main() -> int:
    """Run every arm and print a table."""
    args = _arguments()
    view = Plain(Console(stderr=True))
    shape = Shape()
    found: dict[str, tuple[Schedule, Arms]] = {}
    with open_bench(*prepare(view)) as bench:
        bench.calibrate(shape, view.stage)
        variants = tuple(_profile(bench, choice.name) for choice in bench.choices)
        setting = Setting(variants, bench.objective_ms / 1e3, 0.01)
        for path in args.trace:
            trace = load_trace(path).window(args.start, args.start + args.seconds)
            scale = bench.scale
            load = trace.scaled(1.67 * scale.best_rps, 0.95 * scale.fastest_rps)
            schedule = _schedule(load, shape, args.seed)
            found[path.stem] = schedule, _arms(bench, setting, schedule, args.rivals, view)
    for name, (_, ran) in found.items():
        print(_table(name, args, ran))
    if args.json is not None:
        document = {name: _document(ran) for name, (_, ran) in found.items()}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if args.plot is not None:
        drawn = {
            trace: {name: _served(bench, records) for name, (_, records, _) in ran.items()}
            for trace, (_, ran) in found.items()
        }
        draw(args.plot, drawn, args.seconds, bench.objective_ms)
    return 0


def _arms(bench: Bench, setting: Setting, schedule: Schedule, rivals: str, view: Plain) -> Arms:
    """Let everybody serve the same requests."""
    ran: Arms = {}
    for served in (bench.best, bench.fastest):
        result = arms.run(bench, Arm(served.name), schedule, view)
        ran[result.arm.name] = result.score, result.records, 0
    for name in rivals.split(","):
        view.arm_started(name, schedule.duration_s)
        records, switches = _run(bench, RIVALS[name](setting), setting, schedule)
        score = scores.score(records, bench.served, objective_ms=bench.objective_ms)
        ran[name] = score, records, switches
    result = arms.run(bench, Arm(), schedule, view)
    switches = len(result.governed.switches) if result.governed is not None else 0
    ran["governor"] = result.score, result.records, switches
    return ran


def _document(ran: Arms) -> dict[str, dict[str, float | None]]:
    return {
        name: {
            "requests": score.requests,
            "failed": score.failed,
            "slo_attainment": score.slo_attainment,
            "effective_quality": score.effective_quality,
            "mean_quality": score.mean_quality,
            "p99_ms": score.p99_ms,
            "switches": switches,
        }
        for name, (score, _, switches) in ran.items()
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, nargs="+", required=True, metavar="CSV")
    parser.add_argument("--start", type=float, default=300.0, help="second of the trace")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rivals", default="backlog,model-switching-tuned", metavar="A,B")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser.parse_args()


def _schedule(load: Trace, shape: Shape, seed: int) -> Schedule:
    """Return the requests of a trace, after a warm-up at its first rate."""
    rng = np.random.default_rng(seed)
    warm = np.sort(rng.random(rng.poisson(load.rate_rps[0] * WARMUP_S))) * WARMUP_S - WARMUP_S
    due_s = np.concatenate([warm, load.arrivals_s(seed)])
    weights = np.array(shape.row_weights) / sum(shape.row_weights)
    return Schedule(
        due_s=due_s,
        rows=rng.choice(np.array(shape.rows, dtype=np.int64), size=len(due_s), p=weights),
        page=rng.integers(0, 2**31, size=len(due_s)),
        duration_s=load.duration_s,
        warmup_s=WARMUP_S,
        bursts=(),
        rate_at_s=load.step_s * np.arange(len(load.rate_rps)),
        rate_rps=load.rate_rps,
    )


def _profile(bench: Bench, name: str) -> TwinVariant:
    """Measure a variant's batches by their size, one at a time: what a rival knows beforehand."""
    choice = next(choice for choice in bench.choices if choice.name == name)
    pages = bench.models.pages
    before = totals(bench.server.grpc, choice.model)
    with triton.InferenceServerClient(bench.server.grpc) as client:
        for rows in range(1, bench.models.max_rows + 1):
            tensor = triton.InferInput(
                bench.models.tensors.pages, [rows, *pages.shape[1:]], "UINT8"
            )
            tensor.set_data_from_numpy(np.ascontiguousarray(pages[:rows]))
            for _ in range(_PROFILE_CALLS):
                client.infer(choice.model, [tensor])
    spent = difference(before, totals(bench.server.grpc, choice.model))
    return TwinVariant(name, choice.quality, interpolate(spent.means_ms))


def _run(bench: Bench, rival: Rival, setting: Setting, schedule: Schedule) -> tuple[Records, int]:
    bench.drain()
    bench.point(bench.fastest.name)
    models = [choice.model for choice in bench.choices]
    place = Place(
        bench.server.grpc,
        bench.server.metrics_url,
        bench.alias,
        models,
        bench.models.max_rows,
        Shape().rows_per_request,
    )
    first = setting.variants[setting.fastest].name
    serving = models.index(next(c.model for c in bench.choices if c.name == first))
    with (
        RivalDriver(place, rival, serving) as driver,
        LoadRun(bench.target(), schedule, bench.folder) as load,
    ):
        for progress in load:
            bench.check()
            if progress.time_s >= 0.0:
                driver.counting.set()
        records = load.records()
    return records, driver.switches


def _table(trace: str, args: argparse.Namespace, ran: Arms) -> str:
    lines = [
        f"{trace} from {args.start:g} s, {args.seconds:g} s, seed {args.seed}",
        "",
        "| arm | effective quality | in time | failed | mean quality | p99 | switches |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (score, _, switches) in sorted(
        ran.items(), key=lambda one: -one[1][0].effective_quality
    ):
        lines.append(
            f"| {name} | {score.effective_quality:.4f} | {score.slo_attainment:.2%} "
            f"| {score.failed} of {score.requests} | {score.mean_quality or 0.0:.4f} "
            f"| {score.p99_ms or 0.0:.1f} ms | {switches} |"
        )
    return "\n".join([*lines, ""])


def _served(bench: Bench, records: Records) -> Served:
    """Return what is drawn of an arm."""
    qualities = np.array([served.quality for served in bench.served])
    counted = records.counted()
    met = counted.answered & (counted.latency_ms <= bench.objective_ms)
    worth = np.where(met, qualities[counted.variant], 0.0)
    latency_ms = np.where(counted.answered, counted.latency_ms, np.inf)
    return Served(counted.due_s, latency_ms, worth)


if __name__ == "__main__":
    sys.exit(main())
