"""`governor policy test`: what a policy would come to, before it goes live.

Owns the options, the report and the verdict. It must not simulate or score anything itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import operator
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from controller.cli import output
from controller.cli.table import Column, Json, Paper, duration, milliseconds, table

if TYPE_CHECKING:
    from controller.policy.model import Policy
    from controller.twin.scene import Scene

_Read = TypeVar("_Read")

_REQUIRED: Final = re.compile(r"(?:(?P<model>.+)\.)?(?P<key>[a-z0-9_]+)(?P<op>>=|<=)(?P<n>[0-9.]+)")
_OPERATORS: Final = {">=": operator.ge, "<=": operator.le}
_KEYS: Final = {  # as an operator names them: (as the numbers have them, factor)
    "attainment": ("slo_attainment", 100.0),
    "effective_quality": ("effective_quality", 1.0),
    "mean_quality": ("mean_quality", 1.0),
    "p99": ("p99_ms", 1.0),
    "switches": ("switches", 1.0),
}
_PER_TICK_S: Final = 0.001  # of computing, for one model and each further one, about
_LONG_S: Final = 60.0  # of computing, from which on it is announced


class _MisuseError(Exception):
    """Options that do not go together; the text says why."""


@dataclass(frozen=True, slots=True)
class _Requirement:
    """Something demanded beside the objective."""

    text: str
    model: str | None  # None: of every one
    key: str
    op: str
    number: float

    def missed(self, model: Json) -> str | None:
        """Return what is wrong of a model's numbers, if anything."""
        name, factor = _KEYS[self.key]
        found = model[name]
        value = math.inf if found is None else round(factor * found, 9)
        if self.model not in {None, model["name"]} or _OPERATORS[self.op](value, self.number):
            return None
        return f"{model['name']}: {self.key} is {value:.6g}, {self.op} {self.number:g} is required"


def run(args: argparse.Namespace, load: Callable[[str], Policy]) -> int:
    """Try the policy; return 1 where it misses an objective, or cannot be tried."""
    from controller.journal.reader import JournalUnreadableError
    from controller.policy.load import PolicyError

    try:
        required = [_requirement(text) for text in args.require or ()]
        _check(args)
    except _MisuseError as error:
        output.print_error(str(error))
        return output.USAGE
    if importlib.util.find_spec("numba") is None:
        output.print_error("the test needs numba: pip install 'triton-governor[replay]'")
        return output.PROBLEM
    from controller.twin.ladder import LadderFormatError
    from controller.twin.recorded import RecordedError
    from controller.twin.trace import TraceFormatError

    names = [name for name in (args.file, args.against) if name is not None]
    try:
        policies = [load(name) for name in names]
        document = _tested(args, names, policies, required)
    except (
        JournalUnreadableError,
        LadderFormatError,
        OSError,
        RecordedError,
        TraceFormatError,
    ) as error:
        output.print_error(str(error))
        return output.PROBLEM
    except PolicyError as error:
        print(error, file=sys.stderr)
        return output.PROBLEM
    except _MisuseError as error:
        output.print_error(str(error))
        return output.USAGE
    if args.json:
        output.print_json(document)
    else:
        width = shutil.get_terminal_size().columns
        print("\n".join(report(document, Paper(width))))
    return output.OK if document["ok"] else output.PROBLEM


def _check(args: argparse.Namespace) -> None:
    given = (args.trace, args.ladder)
    if any(given) and not all(given):
        raise _MisuseError("--trace and --ladder go together")
    for option in ("journal", "instance", "since") if all(given) else ("peak",):
        if getattr(args, option) is not None:
            with_what = "--trace" if all(given) else "a journal"
            raise _MisuseError(f"--{option} does not go with {with_what}")
    if args.seeds < 1 or args.jobs == 0 or (args.peak is not None and not args.peak > 0.0):
        raise _MisuseError("--seeds and --peak lie above 0; --jobs is not 0")
    if args.file == "-" == args.against:
        raise _MisuseError("only one of two policies can be standard input")


def _requirement(text: str) -> _Requirement:
    found = _REQUIRED.fullmatch(text.replace(" ", ""))
    if found is None or found["key"] not in _KEYS:
        raise _MisuseError(
            f"--require {text!r}: write KEY>=NUMBER or KEY<=NUMBER, with {', '.join(_KEYS)}"
        )
    try:
        number = float(found["n"])
    except ValueError:
        raise _MisuseError(f"--require {text!r}: {found['n']!r} is no number") from None
    return _Requirement(text, found["model"], found["key"], found["op"], number)


def _tested(
    args: argparse.Namespace,
    names: Sequence[str],
    policies: Sequence[Policy],
    required: Sequence[_Requirement],
) -> dict[str, Any]:
    """Return the numbers of each policy, and the verdict on the first."""
    from controller.twin.rehearsal import busiest, cast, rehearse

    _check_names(args, names, policies, required)
    scene = _recorded(args, policies) if args.trace is None else _given(args, policies)
    wanted = [name for name in args.model or () if name in {m.name for m in policies[0].models}]
    if args.model:
        scene = scene.only(wanted)
    casts = [_cast(policy, scene, args, cast) for policy in policies]
    part = scene
    if args.busiest is not None:
        part = busiest(scene, casts[0], args.busiest)
        casts = [_cast(policy, part, args, cast) for policy in policies]
    _announce(args, part, [one.policy for one in casts])
    document = rehearse(casts, part, range(1, args.seeds + 1), jobs=args.jobs)
    for name, policy in zip(names, document["policies"], strict=True):
        policy["file"] = name
    document["recorded_s"] = scene.duration_s
    document["begins_unix_s"] = None if part.unix_s is None else int(part.unix_s[0])
    document["missed"] = _missed(document["policies"][0], required)
    document["ok"] = not document["missed"]
    return document


def _check_names(
    args: argparse.Namespace,
    names: Sequence[str],
    policies: Sequence[Policy],
    required: Sequence[_Requirement],
) -> None:
    models = [model.name for model in policies[0].models]
    asked = [*(args.model or ()), *(one.model for one in required if one.model is not None)]
    for name in asked:
        if name not in models:
            raise _MisuseError(f"{names[0]} has no model {name!r}: {', '.join(models)}")
    for schedule in args.schedule or ():
        for name, policy in zip(names[:1], policies, strict=False):
            known = [one.name for one in policy.schedules]
            if schedule not in known:
                raise _MisuseError(f"{name} has no schedule {schedule!r}: {', '.join(known)}")


def _cast(policy: Policy, scene: Scene, args: argparse.Namespace, cast: Callable[..., Any]) -> Any:
    from dataclasses import replace

    if args.model:
        kept = tuple(model for model in policy.models if model.name in args.model)
        interval_s = policy.interval_s if len(kept) == len(policy.models) else policy.tick_s
        policy = replace(policy, models=kept, interval_s=interval_s)
    return cast(policy, scene, args.schedule or ())


def _recorded(args: argparse.Namespace, policies: Sequence[Policy]) -> Scene:
    from controller.cli.journals import journal_named
    from controller.journal.reader import JournalReader
    from controller.twin.recorded import RecordedLoad
    from controller.twin.scene import from_journal

    path = journal_named(args, policies[0].journal.path)
    names = dict.fromkeys(model.name for policy in policies for model in policy.models)
    with JournalReader(path) as journal:
        newest_s = max((at_s for at_s, _ in journal.last_decisions()), default=0.0)
        since_s = 0.0 if args.since is None else newest_s - args.since
        loads = {
            name: [RecordedLoad(*load) for load in journal.loads(name, since_s)] for name in names
        }
        return from_journal(str(path), loads, journal.learned("core"))


def _given(args: argparse.Namespace, policies: Sequence[Policy]) -> Scene:
    from controller.twin.ladder import load_ladder
    from controller.twin.scene import from_files
    from controller.twin.trace import load_trace

    models = {model.name for policy in policies for model in policy.models}
    traces = _by_model(args.trace, models, load_trace)
    ladders = _by_model(args.ladder, models, load_ladder)
    return from_files(policies, traces, ladders, args.peak)


def _by_model(
    texts: Sequence[str], models: set[str], read: Callable[[Path], _Read]
) -> dict[str | None, _Read]:
    """Return what was read, by the model that it is given for; None: for all."""
    found: dict[str | None, _Read] = {}
    for text in texts:
        name, is_for_one, path = text.partition("=")
        if is_for_one and name not in models and not Path(text).exists():
            raise _MisuseError(f"{text!r}: there is no model {name!r}: {', '.join(sorted(models))}")
        for_one = is_for_one and name in models
        found[name if for_one else None] = read(Path(path if for_one else text))
    return found


def _announce(args: argparse.Namespace, scene: Scene, policies: Sequence[Policy]) -> None:
    """Say how long it will take where that is long."""
    import os

    ticks = sum(
        scene.duration_s / policy.tick_s * (len(policy.models) + 1.0) / 2.0
        for policy in policies
        if policy.models
    )
    cores = (os.cpu_count() or 1) if args.jobs < 0 else args.jobs
    takes_s = ticks * args.seeds * _PER_TICK_S / min(cores, args.seeds * len(policies))
    if takes_s > _LONG_S:
        output.print_error(
            f"{duration(scene.duration_s)} of load and {args.seeds} seeds take about "
            f"{duration(takes_s)}",
            advice=None if args.busiest else "--busiest 10m is quicker, and harder on the policy",
        )


def _missed(policy: Json, required: Sequence[_Requirement]) -> list[str]:
    """Return all that keeps a policy from going live."""
    missed = [f"{one['model']}: not tested: {one['why']}" for one in policy["untested"]]
    for model in policy["models"]:
        if not model["objective_met"]:
            missed.append(
                f"{model['name']}: {100.0 * model['slo_attainment']:.3f} % in time, the objective "
                f"is {model['percentile']:g} % within {model['latency_ms']:g} ms"
            )
        missed += [what for one in required if (what := one.missed(model)) is not None]
    return missed


def report(document: Json, paper: Paper) -> list[str]:
    """Return the report as lines."""
    policies = _short(document["policies"])
    lines = [_title(document), ""]
    rows = [
        {**model, "file": policy["file"]}
        for name in dict.fromkeys(model["name"] for one in policies for model in one["models"])
        for policy in policies
        for model in policy["models"]
        if model["name"] == name
    ]
    if rows:
        columns = _COLUMNS if len(policies) > 1 else [c for c in _COLUMNS if c.header != "policy"]
        lines += table(columns, rows, paper, _shares)
    for one in document["difference"] or ():
        better, timely = (one[key] for key in ("effective_quality", "slo_attainment"))
        lines.append(
            f"{one['model']}: {policies[0]['file']} less {policies[1]['file']}: effective quality "
            f"{better:+.4f}{_half(one, 'effective_quality', 1.0, 4)}, in time "
            f"{100.0 * timely:+.2f}{_half(one, 'slo_attainment', 100.0, 2)} points"
        )
    for policy in policies:
        lines += [""] if any(policy[key] for key in ("never_measured", "not_simulated")) else []
        left_out: dict[str, list[str]] = {one["model"]: [] for one in policy["never_measured"]}
        for one in policy["never_measured"]:
            left_out[one["model"]].append(one["variant"])
        lines += [
            f"{policy['file']}: left out, never measured: {', '.join(variants)} of {model}"
            for model, variants in left_out.items()
        ]
        lines += [f"{policy['file']}: not simulated: {what}" for what in policy["not_simulated"]]
        lines += [
            f"{policy['file']}: {model['name']}: {duration(model['silent_s'])} without a record "
            "of it count as without a request"
            for model in policy["models"]
            if model["silent_s"]
        ]
    lines.append("")
    lines += [f"MISSED  {what}" for what in document["missed"]]
    if document["ok"]:
        lines.append(f"{policies[0]['file']}: every objective is met")
    return lines


def _short(policies: Sequence[Json]) -> list[Json]:
    """Return the policies with their files' names alone, where these tell them apart."""
    names = [Path(one["file"]).name for one in policies]
    if len(set(names)) < len(names):
        return list(policies)
    return [{**one, "file": name} for one, name in zip(policies, names, strict=True)]


def _title(document: Json) -> str:
    length = f"{duration(document['simulated_s'])} of {document['source']}"
    if document["begins_unix_s"] is not None:
        then = time.localtime(document["begins_unix_s"])
        length += time.strftime(", from %Y-%m-%d %H:%M:%S on", then)
    if document["unknown_s"]:
        length += f" (not recorded in between, left out: {duration(document['unknown_s'])})"
    seeds = len(document["seeds"])
    return f"{length}; {seeds} seed{'s' if seeds > 1 else ''}, one simulated GPU"


def _half(one: Mapping[str, Any], key: str, factor: float, digits: int) -> str:
    half = one["ci95"][key]
    return "" if half is None else f" ± {factor * half:.{digits}f}"


def _timely(row: Json) -> tuple[str, str]:
    share = 100.0 * row["slo_attainment"]
    return f"{share:.2f} of {row['percentile']:g}", "" if row["objective_met"] else "bad"


def _quality(row: Json) -> tuple[str, str]:
    return f"{row['effective_quality']:.4f}{_half(row, 'effective_quality', 1.0, 4)}", ""


def _shares(row: Json) -> list[str]:
    served = sorted(row["variants"].items(), key=lambda item: -item[1])
    of = "answered by" if row["bound_late"] else "time on"
    return [f"{of} {', '.join(f'{name} {100.0 * share:.1f} %' for name, share in served)}"]


_COLUMNS: Final = (
    Column("model", 0, lambda row: (row["name"], ""), right=False),
    Column("policy", 1, lambda row: (row["file"], ""), right=False),
    Column("requests", 5, lambda row: (f"{row['requests']:.0f}", "")),
    Column("in time %", 0, _timely),
    Column("effective quality", 0, _quality),
    Column("mean quality", 4, lambda row: (f"{row['mean_quality']:.4f}", "")),
    Column("p99 ms", 2, lambda row: (milliseconds(row["p99_ms"]).replace("-", "never"), "")),
    Column("switches", 3, lambda row: (f"{row['switches']:.0f}", "")),
)
