"""Make the engines of the batch scenario: `python make.py FOLDER`.

Runs in the server's environment. Fills FOLDER as ``models/train.py`` does: a model repository,
held-out pages, ladder.json, `PROGRESS ratio what` lines. Each variant is an ensemble of networks
whose hidden weights are random; only the last layers are fitted, by ridge regression in closed
form (Rahimi & Recht 2007), each network to what the ones before it left. Wide and fully connected:
most of a batch's time goes into fetching weights, which is why large batches pay. Must not decide
where the engines live or which of them are served.
"""

import itertools
import json
import os
import py_compile
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import scipy.linalg
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from pages import CLASSES, WINDOW, split_digits
from train import _end_with_parent, _report, quality

Array = NDArray[np.float32]

LARGEST = 32
ROWS = (LARGEST, 16, 8, 4, 2)
_TRAINING_PAGES = 12_000
_HELD_OUT_PER_DIGIT = 10
_CHUNK = 2_000
_NOISE = 0.08
_SHIFT = 1  # pixels, each way
_PATCH = 2  # pixels a side
_MIN_CONTRAST = 0.6
_INK, _PAPER = 0.6, 0.2  # of the range of a byte, as on the other ladder's pages
_BIAS = 0.3  # spread of the hidden units' thresholds
_TIMED_RUNS = 15
_OPSET, _IR_VERSION = 17, 8


@dataclass(frozen=True, slots=True)
class Recipe:
    """A variant: so many random networks of two hidden layers, in engines of so many rows."""

    name: str
    networks: int
    width: int
    ridge: float  # of the features' variance, for each training page
    rows: tuple[int, ...]  # the first is the variant's own engine


RECIPES = (Recipe("large", 6, 4096, 0.1, ROWS),)

_CONFIG = """\
# Written by the engines' make.py; the same for all but for the name and the rows.
name: "{name}"
backend: "python"
max_batch_size: {rows}
input [{{ name: "page" data_type: TYPE_UINT8 dims: [{side}, {side}] }}]
output [
  {{ name: "scores" data_type: TYPE_FP32 dims: [{classes}] }},
  {{ name: "variant" data_type: TYPE_INT32 dims: [1] }}
]
dynamic_batching {{ }}
instance_group [{{ count: 1 kind: KIND_CPU }}]
"""


@dataclass(frozen=True, slots=True)
class Network:
    """Weights and thresholds of each layer, the last one fitted."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]  # of the hidden layers


def make_pages(
    sources: NDArray[np.int64], images: Array, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Make a page of each digit: moved by a pixel, paler, a patch of grey over it, and noise."""
    count, side, steps = len(sources), WINDOW, np.arange(WINDOW)
    padded = np.pad(images[sources], ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT)))
    down, right = rng.integers(2 * _SHIFT + 1, size=(2, count))
    at = np.arange(count)[:, None, None]
    ink = padded[at, (down[:, None] + steps)[:, :, None], (right[:, None] + steps)[:, None, :]]
    ink = ink * rng.uniform(_MIN_CONTRAST, 1, (count, 1, 1))
    top, left = rng.integers(side - _PATCH + 1, size=(2, count))
    tall = (top[:, None] <= steps) & (steps < top[:, None] + _PATCH)
    wide = (left[:, None] <= steps) & (steps < left[:, None] + _PATCH)
    ink = np.where(tall[:, :, None] & wide[:, None, :], rng.uniform(0, 1, (count, 1, 1)), ink)
    ink = ink + rng.normal(0, _NOISE, ink.shape)
    return (np.clip(ink * _INK + _PAPER, 0, 1) * 255).astype(np.uint8)


# From bytes to numbers of mean 0 and spread 1, about.
_SCALE, _SHIFT_BY = np.float32(2.5 / 255), np.float32(-0.35 * 2.5)


def hidden(network: Network, pages: NDArray[np.uint8]) -> Array:
    """Return what the last hidden layer makes of pages."""
    values = pages.reshape(len(pages), -1).astype(np.float32) * _SCALE + _SHIFT_BY
    for weight, bias in zip(network.weights, network.biases, strict=False):
        values = np.maximum(values @ weight + bias, 0)
    return values


def fit(recipe: Recipe, pages: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[Network]:
    """Draw the hidden layers, and fit each network's last one to what is left to explain."""
    rest = (np.eye(CLASSES) * 2 - 1)[labels].astype(np.float32)
    networks = []
    for number in range(recipe.networks):
        _report(0.05 + 0.8 * number / recipe.networks, f"fitting {recipe.name}")
        rng = np.random.default_rng((4, recipe.width, number))
        drawn = Network(
            tuple(
                rng.standard_normal((inputs, recipe.width), dtype=np.float32)
                * np.float32(np.sqrt(2 / inputs))
                for inputs in (WINDOW * WINDOW, recipe.width)
            ),
            tuple(
                rng.standard_normal(recipe.width, dtype=np.float32) * np.float32(_BIAS)
                for _ in range(2)
            ),
        )
        values = hidden(drawn, pages)
        gram = values.T @ values
        gram[np.diag_indices(recipe.width)] += recipe.ridge * len(pages) * values.var()
        factor = scipy.linalg.cho_factor(gram, overwrite_a=True, check_finite=False)
        last = scipy.linalg.cho_solve(factor, values.T @ rest, check_finite=False)
        rest -= values @ last
        networks.append(Network((*drawn.weights, last.astype(np.float32)), drawn.biases))
    return networks


def to_onnx(networks: list[Network]) -> bytes:
    """Turn an ensemble into the model that is served; it answers the sum of the networks."""
    flat = numpy_helper.from_array(np.array([-1, WINDOW * WINDOW], np.int64), "flat")
    constants = [
        flat,
        numpy_helper.from_array(np.array(_SCALE), "scale"),
        numpy_helper.from_array(np.array(_SHIFT_BY), "shift"),
    ]
    nodes = [
        helper.make_node("Cast", ["page"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["bytes", "flat"], ["row"]),
        helper.make_node("Mul", ["row", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["ink"]),
    ]
    answers = []
    for number, network in enumerate(networks):
        value = "ink"
        for layer, (weight, bias) in enumerate(
            itertools.zip_longest(network.weights, network.biases)
        ):
            name = f"{number}_{layer}"
            constants.append(numpy_helper.from_array(weight, f"weight_{name}"))
            nodes.append(helper.make_node("MatMul", [value, f"weight_{name}"], [f"sum_{name}"]))
            value = f"sum_{name}"
            if bias is not None:
                constants.append(numpy_helper.from_array(bias, f"bias_{name}"))
                nodes += [
                    helper.make_node("Add", [value, f"bias_{name}"], [f"affine_{name}"]),
                    helper.make_node("Relu", [f"affine_{name}"], [f"hidden_{name}"]),
                ]
                value = f"hidden_{name}"
        answers.append(value)
    nodes.append(helper.make_node("Sum", answers, ["scores"]))
    graph = helper.make_graph(
        nodes,
        "engine",
        [helper.make_tensor_value_info("page", TensorProto.UINT8, ["rows", WINDOW, WINDOW])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", CLASSES])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def open_engine(model: bytes, rows: int) -> onnxruntime.InferenceSession:
    """Compile a model for one shape exactly as model.py does in the server."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_free_dimension_override_by_name("rows", rows)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answer(model: bytes, pages: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say for each page whether the largest engine reads it, as when served."""
    session = open_engine(model, LARGEST)
    rest = -len(pages) % LARGEST
    padded = np.concatenate((pages, pages[:rest]))
    scores = np.concatenate(
        [
            session.run(None, {"page": padded[start : start + LARGEST]})[0]
            for start in range(0, len(padded), LARGEST)
        ]
    )
    return scores[: len(pages)].argmax(axis=1) == labels


def service_ms(model: bytes, rows: int, pages: NDArray[np.uint8]) -> float:
    """Measure ONNX Runtime alone: the shortest run, as what runs beside it only ever adds."""
    session, times = open_engine(model, rows), []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        session.run(None, {"page": pages[:rows]})
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e3, 4)


def main(folder: Path) -> None:
    """Make all engines in `folder`, which exists and is empty."""
    _report(0.0, "drawing digits")
    digits, kept = split_digits()
    rng = np.random.default_rng(5)
    sources = rng.integers(len(digits.ink), size=_TRAINING_PAGES)
    pages, labels = make_pages(sources, digits.ink, rng), digits.labels[sources]
    held_sources = rng.permutation(np.tile(np.arange(len(kept.ink)), _HELD_OUT_PER_DIGIT))
    held, held_labels = make_pages(held_sources, kept.ink, rng), kept.labels[held_sources]
    variants: list[dict[str, Any]] = []
    correct = []
    for recipe in RECIPES:
        networks = fit(recipe, pages, labels)
        model = to_onnx(networks)
        _report(0.9, f"measuring {recipe.name}")
        right = answer(model, held, held_labels)
        share, error = quality(right, held_sources)
        params = sum(w.size for n in networks for w in (*n.weights, *n.biases))
        whole = f"digits_{recipe.name}"
        for rows in recipe.rows:
            own = rows == recipe.rows[0]
            entry = {
                "name": recipe.name if own else f"{recipe.name}.b{rows}",
                "model": whole if own else f"{whole}_b{rows}",
                "quality": round(share, 5),
                "quality_error": round(error, 5),
                "compression": f"{recipe.networks} x {recipe.width} random units, for {rows} rows",
                "params": params,
                "batch_ms": {rows: service_ms(model, rows, held)},
                "max_batch": rows,
                "profile_of": None if own else recipe.name,
            }
            write_engine(folder / "repository", entry, model, len(variants), like=whole)
            variants.append(entry)
            correct.append(right)
    np.savez(
        folder / "held_out.npz",
        pages=held,
        labels=held_labels.astype(np.int32),
        sources=held_sources.astype(np.int32),
        correct=np.stack(correct),
    )
    text = json.dumps({"variants": variants}, indent=1)
    (folder / "ladder.json").write_text(text, encoding="utf-8")
    _report(1.0, "the engines are ready")


def write_engine(
    repository: Path, entry: dict[str, Any], model: bytes, number: int, *, like: str
) -> None:
    """Write one engine's folder; the weights are a variant's and lie on the disk once."""
    version = repository / entry["model"] / "1"
    version.mkdir(parents=True)
    config = _CONFIG.format(
        name=entry["model"], rows=entry["max_batch"], side=WINDOW, classes=CLASSES
    )
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    (version / "number").write_text(str(number), encoding="utf-8")
    if entry["model"] == like:
        (version / "model.onnx").write_bytes(model)
    else:
        os.link(repository / like / "1/model.onnx", version / "model.onnx")
    code = Path(shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py"))
    # The server's first import would write this and so change the folder, upon which Triton
    # reloads the model at its next load. Unchecked: a copy's new time stamp is no reason.
    py_compile.compile(
        str(code), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )


if __name__ == "__main__":
    if os.getpid() == os.getpgid(0) and not sys.stdin.isatty():
        _end_with_parent()
    main(Path(sys.argv[1]))
