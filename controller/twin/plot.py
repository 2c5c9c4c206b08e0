"""The replay's picture: load, effective quality over time, headroom of every policy.

Owns the drawing. It must not compute what the table says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_GOVERNOR: Final = "governor"
_LEAST_SHOWN: Final = -0.5  # of the headroom; the number beside the bar tells the rest
_RED: Final = "#d62728"
_INK: Final = "#333333"
_LINES: Final = 6  # beside the governor's: more cannot be told apart


def draw(path: Path, document: dict[str, Any]) -> None:
    """Write the picture of a replay's document; the kind of file follows from its name.

    Raises:
        OSError: it cannot be written.
        ValueError: matplotlib does not know this kind of file.
    """
    mpl.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"})
    policies = sorted(document["policies"], key=lambda one: -one["effective_quality"])
    figure = Figure(figsize=(11, 9), dpi=110, layout="constrained")
    load, quality, bars = figure.subplots(
        3, 1, gridspec_kw={"height_ratios": [1.1, 1.8, 0.4 + 0.24 * len(policies)]}
    )
    quality.sharex(load)
    _load(load, document)
    _quality(quality, document, [one["name"] for one in policies])
    _bars(bars, policies)
    figure.savefig(path)


def _load(axes: Axes, document: dict[str, Any]) -> None:
    timeline = document["timeline"]
    at_s = timeline["step_s"] * np.arange(len(timeline["load_rps"]) + 1)
    axes.stairs(timeline["load_rps"], at_s, fill=True, color="#9ecae1")
    for name, capacity_rps in timeline["capacity_rps"].items():
        if capacity_rps <= 1.3 * max(timeline["load_rps"]):
            axes.axhline(capacity_rps, color=_INK, linewidth=0.7, linestyle=":")
            axes.annotate(
                name,
                (1.005, capacity_rps),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=7,
                annotation_clip=False,
            )
    axes.set_xlim(0, at_s[-1])
    axes.set_ylim(0)
    axes.set_ylabel("requests/s")
    axes.set_title(
        f"{document['trace']} on {document['ladder']}, {document['percentile']:g} % within "
        f"{document['slo_ms']:g} ms; dotted: what each variant can bear",
        loc="left",
    )


def _quality(axes: Axes, document: dict[str, Any], ranked: list[str]) -> None:
    timeline = document["timeline"]
    middle_s = timeline["step_s"] * (np.arange(len(timeline["load_rps"])) + 0.5)
    others = [name for name in ranked if name != _GOVERNOR][:_LINES]
    for name in (*others, _GOVERNOR):
        if name not in timeline["effective_quality"]:
            continue
        values = np.array(timeline["effective_quality"][name], dtype=np.float64)
        if name == _GOVERNOR:
            axes.plot(middle_s, values, label=name, color=_RED, linewidth=1.8, zorder=5)
        else:
            axes.plot(middle_s, values, label=name, linewidth=0.9, alpha=0.8)
    axes.set_ylabel("effective quality")
    axes.set_xlabel("seconds")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_title("Quality of the answers in time, over all requests of each step", loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=7, frameon=False)


def _bars(axes: Axes, policies: list[dict[str, Any]]) -> None:
    """Draw the headroom that each policy captured, with its interval over seeds."""
    for place, one in enumerate(reversed(policies)):
        headroom = one["headroom_captured"]
        if headroom is None:
            continue
        colour = _RED if one["name"] == _GOVERNOR else "#9e9e9e" if one["idealised"] else "#4c78a8"
        half = one["ci95"]["headroom_captured"]
        axes.barh(place, headroom, color=colour, height=0.7, xerr=half, ecolor=_INK)
        axes.annotate(
            f"{headroom:.0%}   {one['slo_attainment']:.2%} in time",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(policies)))
    axes.set_yticklabels([one["name"] for one in reversed(policies)])
    # What is worse than the fastest variant by far would leave no room for the others.
    least = min(0.0, *(one["headroom_captured"] or 0.0 for one in policies))
    axes.set_xlim(max(least, _LEAST_SHOWN), 1.05)
    axes.axvline(0.0, color=_INK, linewidth=0.7)
    axes.set_title(
        "Headroom captured: 0 is the fastest variant throughout, 1 the fluid oracle "
        "(grey: idealised)",
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
