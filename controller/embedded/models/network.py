"""Own the networks of the sample models: their layers, their training, their compression.

Runs in the server's environment. A network is a small perceptron over one window. It is trained
here and not by scikit-learn, because fine-tuning a factored layer (low rank) needs a layer
without activation, which MLPClassifier cannot have; this is also faster. Must not know about
pages or files.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_BATCH = 512
_DECAY_1, _DECAY_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(slots=True)
class Layer:
    """An affine map of shape (inputs, outputs), with a rectifier after it or not."""

    weight: Array
    bias: Array
    rectified: bool


Network = list[Layer]


def make_network(widths: tuple[int, ...], rng: np.random.Generator) -> Network:
    """Make a network with random weights (He et al. 2015)."""
    last = len(widths) - 2
    return [
        Layer(
            rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32),
            np.zeros(outputs, np.float32),
            index < last,
        )
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths))
    ]


def count_parameters(network: Network) -> int:
    """Count weights and biases."""
    return sum(layer.weight.size + layer.bias.size for layer in network)


def activations(network: Network, rows: Array) -> list[Array]:
    """Return the input and what each layer makes of it."""
    values = [rows]
    for layer in network:
        out = values[-1] @ layer.weight
        out += layer.bias
        values.append(np.maximum(out, 0, out=out) if layer.rectified else out)
    return values


def train(
    network: Network,
    windows: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    prepare: Callable[[NDArray[np.uint8]], Array],
    samples: int,
    rate: float,
    rng: np.random.Generator,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Train in place on `samples` windows: cross-entropy, Adam, rate falling as a half cosine.

    `prepare` turns a batch of windows into what the network sees.
    """
    parameters = [array for layer in network for array in (layer.weight, layer.bias)]
    means = [np.zeros_like(array) for array in parameters]
    squares = [np.zeros_like(array) for array in parameters]
    steps = max(1, samples // _BATCH)
    for step in range(steps):
        chosen = rng.integers(len(windows), size=_BATCH)
        gradients = _gradients(network, prepare(windows[chosen]), labels[chosen])
        current = rate * (1 + np.cos(np.pi * step / steps)) / 2
        current *= np.sqrt(1 - _DECAY_2 ** (step + 1)) / (1 - _DECAY_1 ** (step + 1))
        for index, gradient in enumerate(gradients):
            mean, square = means[index], squares[index]
            mean += (1 - _DECAY_1) * (gradient - mean)
            square += (1 - _DECAY_2) * (gradient * gradient - square)
            step_size = mean / (np.sqrt(square) + np.float32(_EPSILON))
            parameters[index] -= np.float32(current) * step_size
        if step % 100 == 0:
            progress(step / steps)


def factor(network: Network, ranks: dict[int, int], windows: Array) -> Network:
    """Replace layers by two thinner ones: the best of that rank for the inputs they really see.

    The singular value decomposition is taken of the weights seen through the covariance of the
    layer's inputs, so the error is least where the data is (Chen et al. 2021, DRONE).
    """
    inputs = activations(network, windows)
    factored: Network = []
    for index, layer in enumerate(network):
        rank = ranks.get(index)
        if rank is None:
            factored.append(Layer(layer.weight.copy(), layer.bias.copy(), layer.rectified))
            continue
        values = inputs[index].astype(np.float64)
        moment = values.T @ values / len(values) + 1e-6 * np.eye(values.shape[1])
        root = np.linalg.cholesky(moment)
        _, _, right = np.linalg.svd(root.T @ layer.weight, full_matrices=False)
        outer = right[:rank].astype(np.float32)
        inner = layer.weight @ outer.T
        balance = np.sqrt(np.linalg.norm(inner, axis=0)).astype(np.float32)
        factored.append(Layer(inner / balance, np.zeros(rank, np.float32), rectified=False))
        factored.append(Layer(balance[:, None] * outer, layer.bias.copy(), layer.rectified))
    return factored


def prune(network: Network, widths: tuple[int, ...], windows: Array) -> Network:
    """Remove whole hidden units, those first that move the next layer least on real inputs."""
    inputs = activations(network, windows)
    pruned = [Layer(layer.weight.copy(), layer.bias.copy(), layer.rectified) for layer in network]
    for index, width in enumerate(widths):
        used = np.sqrt(np.mean(np.square(inputs[index + 1]), axis=0))
        worth = used * np.linalg.norm(network[index + 1].weight, axis=1)
        kept = np.sort(np.argsort(worth)[-width:])
        pruned[index].weight = np.ascontiguousarray(pruned[index].weight[:, kept])
        pruned[index].bias = pruned[index].bias[kept]
        pruned[index + 1].weight = np.ascontiguousarray(pruned[index + 1].weight[kept])
    return pruned


def _gradients(network: Network, rows: Array, labels: NDArray[np.int64]) -> list[Array]:
    """Return the gradients of the mean cross-entropy: weight and bias of each layer."""
    values = activations(network, rows)
    delta = values[-1] - values[-1].max(axis=1, keepdims=True)
    np.exp(delta, out=delta)
    delta /= delta.sum(axis=1, keepdims=True)
    delta[np.arange(len(labels)), labels] -= 1
    delta /= len(labels)
    gradients: list[Array] = []
    for index in range(len(network) - 1, -1, -1):
        gradients += [delta.sum(axis=0), values[index].T @ delta]
        if index:
            delta = delta @ network[index].weight.T
            if network[index - 1].rectified:
                delta *= values[index] > 0
    return gradients[::-1]
