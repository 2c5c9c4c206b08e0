"""One HTML page that needs nothing else: no network, no server, no files beside it.

Owns the page's order and its content security policy. Pure but for the assets of this package. It
must not compute a number: `summary.py` and `series.py` do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from controller import __version__
from controller.journal.minutes import MachineMinute, ModelMinute
from controller.report import tables
from controller.report.html import Markup, data, element, inline, joined, lone, visible
from controller.report.series import Steps, gather, model_columns
from controller.report.summary import Json, Recorded, variants_of
from controller.report.zone import local, offsets, zone_of

_GENERATOR: Final = "triton-governor report"
_MARK: Final = f'<meta name="generator" content="{_GENERATOR}'
_NUMBERED: Final = 60  # events; more of them are drawn without a number
_MARKED: Final = 120  # more of them would hide the plots: the table has them
# Name of the plot, its title and what it says.
_PLOTS: Final = (
    ("load", "Load", "requests/s that arrived, and the second with the most"),
    ("variants", "Who served", "share of the time"),
    (
        "latency",
        "Latency",
        "in Triton, of traced requests; the highest one of as much time as it takes to know it",
    ),
    ("budget", "Error budget", "how fast it burned, and how much of the whole time's was used"),
    ("told", "Told and came", "the latency that was told beforehand, and what came"),
)

_UNTRACED: Final = {"latency": "in Triton; without traces only the mean is known"}


def page(recorded: Recorded, document: Json) -> str:
    """Return the page of what was recorded, of which `document` is the summary."""
    source = files("controller.report") / "assets"

    def asset(name: str) -> str:
        return source.joinpath(*name.split("/")).read_text(encoding="utf-8")

    style, style_hash = inline("style", asset("uplot/uPlot.min.css") + asset("report.css"))
    licence = f"/*\n{asset('uplot/LICENSE').strip()}\n*/\n"
    script, script_hash = inline(
        "script", licence + asset("uplot/uPlot.iife.min.js") + asset("report.js")
    )
    policy = (
        f"default-src 'none'; script-src {script_hash}; style-src {style_hash};"
        " base-uri 'none'; form-action 'none'"
    )
    since, until = recorded.since_unix_s, recorded.until_unix_s
    title = f"Triton Governor, {local(since, '%Y-%m-%d %H:%M')} to {local(until, '%m-%d %H:%M')}"
    head = element(
        "head",
        lone("meta", charset="utf-8"),
        lone("meta", name="generator", content=f"{_GENERATOR} {__version__}"),
        lone("meta", http_equiv="Content-Security-Policy", content=policy),
        lone("meta", name="viewport", content="width=device-width, initial-scale=1"),
        lone("meta", name="color-scheme", content="light dark"),
        element("title", title),
        style,
    )
    main = element(
        "main",
        _header(document),
        _notes(document["notes"]),
        tables.overview(document["models"]) if document["models"] else None,
        *(_model(i, model) for i, model in enumerate(document["models"])),
        tables.actions(document["actions"]),
        tables.events(document["events"], numbered=_numbered(document["events"])),
        _machine(document["machine"], has_minutes=recorded.has_minutes),
        element("footer", f"triton-governor {__version__}; plots by uPlot (MIT)."),
    )
    body = element("body", main, data(_plots(recorded, document), "data"), script)
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def is_report(beginning: str) -> bool:
    """Return whether a file that begins so is a report, of any version."""
    return beginning.lstrip().lower().startswith("<!doctype html>") and _MARK in beginning


def _header(document: Json) -> Markup:
    since, until = document["since_unix_s"], document["until_unix_s"]
    zones = {zone_of(since): None, zone_of(until): None}
    return element(
        "header",
        element("h1", "Triton Governor"),
        element(
            "p",
            f"{local(since, '%Y-%m-%d %H:%M')} to {local(until, '%Y-%m-%d %H:%M')},"
            f" {tables.duration(until - since)}. Times are local: {' and '.join(zones)}.",
        ),
        element(
            "p",
            "Drag across a plot to look closer, double-click to see everything again. From ",
            element("code", document["journal"]),
            ".",
            cls="dim",
        ),
    )


def _notes(notes: Sequence[str]) -> Markup | None:
    if not notes:
        return None
    items = joined([element("li", note) for note in notes])
    return element("section", element("h2", "Mind"), element("ul", items), cls="notes")


def _model(index: int, model: Json) -> Markup:
    traced = model["traced"]["in_time"] + model["traced"]["late"] > 0
    shown = [figure for figure in _PLOTS if traced or figure[0] in {"load", "variants", "latency"}]
    return element(
        "section",
        element("h2", model["name"]),
        tables.headline(model),
        *(
            _figure(name, title, text if traced else _UNTRACED.get(name, text), index)
            for name, title, text in shown
        ),
        element("div", tables.variants(model), tables.reasons(model), cls="pair"),
        id=f"model-{index}",
        cls="model",
    )


def _figure(name: str, title: str, text: str, index: int | None) -> Markup:
    caption = element("figcaption", element("b", title), " ", element("span", text, cls="dim"))
    place = element(
        "div",
        element("noscript", "This plot needs JavaScript; the tables do not."),
        cls="plot",
        data_plot=name,
        data_model=None if index is None else str(index),
    )
    return element("figure", caption, place)


def _machine(machine: Json, *, has_minutes: bool) -> Markup | None:
    if not has_minutes:
        return None
    return element(
        "section",
        element("h2", "The machine"),
        _figure("machine", "Busy", "%, of the host's processors and of the GPUs", None),
        tables.machine(machine),
    )


def _numbered(events: Sequence[Mapping[str, Any]]) -> bool:
    return len(events) <= _NUMBERED


def _plots(recorded: Recorded, document: Json) -> Json:
    """Return what the plots are drawn from."""
    since, until = recorded.since_unix_s, recorded.until_unix_s
    fine, coarse = Steps(since, until), Steps(since, until, coarse=True)
    machine = gather(fine, recorded.machine, MachineMinute)
    gone = [sums is not None and 0.0 == sums.triton_s < sums.seconds for sums in machine]
    by_model: dict[str, list[tuple[int, ModelMinute]]] = defaultdict(list)
    for begins, name, minute in recorded.models:
        by_model[name].append((begins, minute))
    models = []
    for model in document["models"]:
        name = model["name"]
        variants = variants_of(name, {v["name"]: None for v in model["variants"]}, recorded)
        columns = model_columns(
            gather(fine, by_model[name], ModelMinute),
            gather(coarse, by_model[name], ModelMinute),
            gone,
            variants,
        )
        percentile = model["objective"]["percentile"]
        names = [visible(variant) for variant in variants]
        models.append({"percentile": percentile, "variants": names, **columns})
    numbered = _numbered(document["events"])
    return {
        "since": since,
        "until": until,
        "offsets": offsets(since, until),
        "fine": [fine.first * fine.step_s, fine.step_s, fine.count],
        "coarse": [coarse.first * coarse.step_s, coarse.step_s, coarse.count],
        "down": [
            i
            for i, sums in enumerate(machine)
            if sums is None and (fine.first + i + 1) * fine.step_s > recorded.known_since_unix_s
        ],
        "gone": [i for i, away in enumerate(gone) if away],
        "marks": [
            [event["time_unix_s"], number if numbered else None]
            for number, event in enumerate(document["events"], 1)
            if len(document["events"]) <= _MARKED
        ],
        "models": models,
        "machine": _machine_columns(machine),
    }


def _machine_columns(machine: Sequence[MachineMinute | None]) -> Json:
    gpus = sorted({gpu for sums in machine if sums is not None for gpu in sums.gpus})

    def gpu_busy(sums: MachineMinute | None, gpu: str) -> float | None:
        seen = None if sums is None else sums.gpus.get(gpu)
        return round(100.0 * seen[1] / seen[0], 1) if seen and seen[0] > 0.0 else None

    def host_busy(sums: MachineMinute | None) -> float | None:
        known = sums is not None and sums.seconds > 0.0
        return round(100.0 * sums.host_s / sums.seconds, 1) if sums and known else None

    return {
        "host": [host_busy(sums) for sums in machine],
        "gpus": [[visible(gpu), [gpu_busy(sums, gpu) for sums in machine]] for gpu in gpus],
    }
