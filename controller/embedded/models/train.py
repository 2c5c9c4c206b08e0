"""Train, compress, export and measure the sample models: `python train.py FOLDER`.

Runs in the server's environment, in two processes of one thread each. Fills FOLDER with a model
repository, held-out pages and ladder.json; prints `PROGRESS ratio what` lines. Must not decide
where the ladder lives or whether it is needed: that is ladder.py's.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import py_compile
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from export import open_session, to_onnx
from network import Network, count_parameters, factor, make_network, prune, train
from numpy.typing import NDArray
from pages import (
    BACKGROUND,
    CLASSES,
    PAGE,
    WINDOW,
    Pages,
    make_pages,
    make_windows,
    split_digits,
    to_ink,
)
from threadpoolctl import threadpool_limits

MAX_BATCH = 8
_PIXELS, _OUTPUTS = WINDOW * WINDOW, BACKGROUND + 1
_WINDOW_PAGES = 240_000
_CHUNK_PAGES = 4_000
_HELD_OUT_PER_DIGIT = 10
_TIMED_RUNS = 40
_CALIBRATION_WINDOWS = 50_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant is made: trained from nothing, or from the widest by compression."""

    name: str
    samples: int
    rate: float
    how: str
    hidden: tuple[int, ...] = ()
    pruned_to: tuple[int, ...] = ()
    ranks: tuple[tuple[int, int], ...] = ()


# Fastest first: the place in this list is the number that a variant answers with. Widths in
# multiples of 16, where possible: ONNX Runtime's convolutions compute that many channels at once.
RECIPES = (
    Recipe("tiny", 8_000_000, 1e-2, "trained: 16+16 units", hidden=(16, 16)),
    Recipe("small", 4_000_000, 6e-3, "trained: 32+16 units", hidden=(32, 16)),
    Recipe(
        "pruned",
        3_000_000,
        2e-3,
        "wide, pruned from 128+128 to 48+32 units, fine-tuned",
        pruned_to=(48, 32),
    ),
    Recipe(
        "lowrank",
        2_000_000,
        1e-3,
        "wide, both layers at rank 16 by SVD, fine-tuned",
        ranks=((0, 16), (1, 16)),
    ),
    Recipe("wide", 8_000_000, 3e-3, "trained: 128+128 units", hidden=(128, 128)),
)
_TEACHER = "wide"

_CONFIG = """\
# Written by the sample models' train.py; the same for all variants but for the name.
name: "{name}"
backend: "python"
max_batch_size: {rows}
input [{{ name: "page" data_type: TYPE_UINT8 dims: [{page}, {page}] }}]
output [
  {{ name: "scores" data_type: TYPE_FP32 dims: [{classes}] }},
  {{ name: "variant" data_type: TYPE_INT32 dims: [1] }}
]
dynamic_batching {{ }}
instance_group [{{ count: 1 kind: KIND_CPU }}]
"""


class _Data:
    """What the worker processes inherit."""

    windows: NDArray[np.uint8]
    labels: NDArray[np.int64]
    held_out: Pages


def _start_worker() -> None:
    # Two workers of one thread each are faster than one of two on matrices this small.
    threadpool_limits(1)


def _make_windows(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    digits, _ = split_digits()
    rng = np.random.default_rng((1, seed))
    return make_windows(digits, _CHUNK_PAGES, rng)


def _make_held_out() -> Pages:
    """Make the same number of pages from every held-out digit, in random order."""
    _, digits = split_digits()
    rng = np.random.default_rng(2)
    sources = np.tile(np.arange(len(digits.ink)), _HELD_OUT_PER_DIGIT)
    return make_pages(digits, rng.permutation(sources), rng)


def _make_variant(index: int, teacher: Network | None) -> tuple[Network, bytes]:
    recipe, rng = RECIPES[index], np.random.default_rng((3, index))
    sample = to_ink(_Data.windows[:_CALIBRATION_WINDOWS])
    if recipe.hidden:
        network = make_network((_PIXELS, *recipe.hidden, _OUTPUTS), rng)
    elif recipe.ranks:
        network = factor(teacher, dict(recipe.ranks), sample)
    else:
        network = prune(teacher, recipe.pruned_to, sample)
    train(
        network,
        _Data.windows,
        _Data.labels,
        prepare=to_ink,
        samples=recipe.samples,
        rate=recipe.rate,
        rng=rng,
    )
    return network, to_onnx(network, index).SerializeToString()


def _answer(model: bytes) -> NDArray[np.bool_]:
    """Say for each held-out page whether the model reads it, in full batches as when served."""
    session, pixels = open_session(model), _Data.held_out.pixels
    scores = [
        session.run(None, {"page": pixels[start : start + MAX_BATCH]})[0]
        for start in range(0, len(pixels), MAX_BATCH)
    ]
    return np.concatenate(scores).argmax(axis=1) == _Data.held_out.labels


def _batch_ms(model: bytes) -> dict[int, float]:
    """Measure ONNX Runtime alone: the median time of a run by batch size."""
    session, pixels = open_session(model), _Data.held_out.pixels
    medians = {}
    for rows in (1, 4, MAX_BATCH):
        times = []
        for _ in range(_TIMED_RUNS):
            start = time.perf_counter()
            session.run(None, {"page": pixels[:rows]})
            times.append(time.perf_counter() - start)
        medians[rows] = round(float(np.median(times)) * 1e3, 4)
    return medians


def quality(correct: NDArray[np.bool_], sources: NDArray[np.int64]) -> tuple[float, float]:
    """Return the share of pages read, and its standard error.

    Pages of one digit are alike, so the digits are what was sampled: with equally many pages
    of each, the error is that of the mean over digits of each one's share.
    """
    shares = np.bincount(sources, weights=correct) / np.bincount(sources)
    return float(shares.mean()), float(shares.std(ddof=1) / np.sqrt(len(shares)))


def main(folder: Path) -> None:
    """Make the whole ladder in `folder`, which exists and is empty."""
    context = multiprocessing.get_context("fork")
    executor = functools.partial(
        ProcessPoolExecutor, 2, mp_context=context, initializer=_start_worker
    )
    _report(0.0, "drawing pages of digits")
    with executor() as workers:
        held_out = workers.submit(_make_held_out)
        parts = list(workers.map(_make_windows, range(_WINDOW_PAGES // _CHUNK_PAGES)))
        _Data.held_out = held_out.result()
    _Data.windows = np.concatenate([windows for windows, _ in parts])
    _Data.labels = np.concatenate([labels for _, labels in parts])
    del parts

    names = [recipe.name for recipe in RECIPES]
    models: dict[str, bytes] = {}
    networks: dict[str, Network] = {}
    answers: dict[str, Future[NDArray[np.bool_]]] = {}
    with executor() as workers:  # forked now: they inherit the data
        from_nothing = {r.name: names.index(r.name) for r in RECIPES if r.hidden}
        compressed = {r.name: names.index(r.name) for r in RECIPES if not r.hidden}
        _report(0.1, "training the sample models")
        # The teacher takes longest and is waited for: it goes first.
        order = sorted(from_nothing, key=lambda name: name != _TEACHER)
        jobs = {n: workers.submit(_make_variant, from_nothing[n], None) for n in order}
        for name in reversed(order):
            networks[name], models[name] = jobs[name].result()
            answers[name] = workers.submit(_answer, models[name])
        _report(0.5, "compressing the widest: pruning, low rank")
        teacher = networks[_TEACHER]
        jobs = {n: workers.submit(_make_variant, i, teacher) for n, i in compressed.items()}
        for name, job in jobs.items():
            networks[name], models[name] = job.result()
            answers[name] = workers.submit(_answer, models[name])
        _report(0.8, "measuring quality on held-out pages")
        correct = {name: answer.result() for name, answer in answers.items()}
    _report(0.95, "measuring service times")
    variants = [
        _describe(recipe, networks[recipe.name], models[recipe.name], correct[recipe.name])
        for recipe in RECIPES
    ]
    _write(folder, models, correct, variants)
    _report(1.0, "the sample models are ready")


def _describe(
    recipe: Recipe, network: Network, model: bytes, correct: NDArray[np.bool_]
) -> dict[str, Any]:
    share, error = quality(correct, _Data.held_out.sources)
    return {
        "name": recipe.name,
        "model": f"digits_{recipe.name}",
        "quality": round(share, 5),
        "quality_error": round(error, 5),
        "compression": recipe.how,
        "params": count_parameters(network),
        "batch_ms": _batch_ms(model),
    }


def _write(
    folder: Path,
    models: dict[str, bytes],
    correct: dict[str, NDArray[np.bool_]],
    variants: list[dict[str, Any]],
) -> None:
    for variant in variants:
        version = folder / "repository" / variant["model"] / "1"
        version.mkdir(parents=True)
        config = _CONFIG.format(name=variant["model"], rows=MAX_BATCH, page=PAGE, classes=CLASSES)
        (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
        (version / "model.onnx").write_bytes(models[variant["name"]])
        code = Path(shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py"))
        # The server's first import would write this and so change the folder, upon which Triton
        # reloads the model at its next load. Unchecked: a copy's new time stamp is no reason.
        py_compile.compile(
            str(code),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    held_out = _Data.held_out
    np.savez(
        folder / "held_out.npz",
        pages=held_out.pixels,
        labels=held_out.labels.astype(np.int32),
        sources=held_out.sources.astype(np.int32),
        correct=np.stack([correct[variant["name"]] for variant in variants]),
    )
    text = json.dumps({"variants": variants}, indent=1)
    (folder / "ladder.json").write_text(text, encoding="utf-8")


def _end_with_parent() -> None:
    """End this process group when standard input ends: whoever wanted the models is gone."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _report(ratio: float, what: str) -> None:
    print(f"PROGRESS {ratio:.3f} {what}", flush=True)


if __name__ == "__main__":
    if os.getpid() == os.getpgid(0) and not sys.stdin.isatty():
        _end_with_parent()
    main(Path(sys.argv[1]))
