"""The parts of the sample models' training that need only NumPy and scikit-learn."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from controller.embedded import ladder as constants

_SCRIPTS = Path(constants.__file__).with_name("models")


def load(name):
    """Import a script of the server's environment under a name that nothing else has."""
    spec = importlib.util.spec_from_file_location(f"sample_models_{name}", _SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


network = load("network")
pages = load("pages")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def trained(rng):
    """A network of two hidden layers with biases that are not zero, and inputs for it."""
    made = network.make_network((20, 16, 12, 5), rng)
    for layer in made:
        layer.bias += rng.normal(0, 0.3, layer.bias.shape).astype(np.float32)
    return made, rng.normal(size=(400, 20)).astype(np.float32)


def outputs(made, rows):
    return network.activations(made, rows)[-1]


def loss(made, rows, labels):
    logits = outputs(made, rows).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(labels)), labels]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - chosen))


def test_gradients_are_those_of_the_loss(trained, rng):
    made, rows = trained
    for layer in made:  # in double precision, so that differences mean something
        layer.weight, layer.bias = layer.weight.astype(float), layer.bias.astype(float)
    rows, labels = rows.astype(float), rng.integers(5, size=len(rows))
    gradients = network._gradients(made, rows, labels)
    arrays = [array for layer in made for array in (layer.weight, layer.bias)]
    assert [g.shape for g in gradients] == [a.shape for a in arrays]
    for array, gradient in zip(arrays, gradients, strict=True):
        for _ in range(4):
            at = tuple(rng.integers(size) for size in array.shape)
            value = array[at]
            array[at] = value + 1e-6
            above = loss(made, rows, labels)
            array[at] = value - 1e-6
            below = loss(made, rows, labels)
            array[at] = value
            assert gradient[at] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_training_learns_and_the_same_seed_learns_the_same(rng):
    rows = rng.integers(256, size=(2000, 8), dtype=np.uint8)
    labels = (rows[:, 0] > rows[:, 1]).astype(np.int64)
    results = []
    for _ in range(2):
        seeded = np.random.default_rng(1)
        made = network.make_network((8, 16, 2), seeded)
        network.train(
            made,
            rows,
            labels,
            prepare=lambda part: part.astype(np.float32) / 128 - 1,
            samples=60_000,
            rate=1e-2,
            rng=seeded,
        )
        results.append(outputs(made, rows.astype(np.float32) / 128 - 1))
    assert np.mean(results[0].argmax(axis=1) == labels) > 0.95
    np.testing.assert_array_equal(results[0], results[1])


def test_a_factored_layer_of_full_rank_computes_the_same(trained):
    made, rows = trained
    factored = network.factor(made, {0: 16, 1: 12}, rows)
    assert len(factored) == len(made) + 2
    np.testing.assert_allclose(outputs(factored, rows), outputs(made, rows), atol=1e-3)


def test_a_factored_layer_errs_least_where_the_inputs_are(rng):
    made = network.make_network((20, 16, 3), rng)
    lively = rng.normal(size=(2000, 20)) * np.where(np.arange(20) < 4, 5.0, 0.01)
    rows = lively.astype(np.float32)
    factored = network.factor(made, {0: 4}, rows)
    np.testing.assert_allclose(outputs(factored, rows), outputs(made, rows), atol=0.3)
    assert network.count_parameters(factored) < network.count_parameters(made)


def test_pruning_removes_units_that_nothing_hears_first(trained):
    made, rows = trained
    made[1].weight[[2, 5], :] = 0  # the next layer ignores these two
    made[1].bias[3] = -1e6  # and this one never fires
    pruned = network.prune(made, (14, 11), rows)
    assert [layer.weight.shape for layer in pruned] == [(20, 14), (14, 11), (11, 5)]
    np.testing.assert_allclose(outputs(pruned, rows), outputs(made, rows), atol=1e-4)


def test_compressing_leaves_the_original_as_it_was(trained):
    made, rows = trained
    before = outputs(made, rows)
    for compressed in (network.prune(made, (8, 8), rows), network.factor(made, {1: 4}, rows)):
        for layer in compressed:
            layer.weight += 1
    np.testing.assert_array_equal(outputs(made, rows), before)


def test_pages_are_what_the_service_takes():
    assert (pages.PAGE, pages.PAGE) == constants.INPUT_SHAPE
    assert pages.CLASSES == constants.CLASSES


def test_no_digit_is_both_trained_on_and_held_out():
    training, held_out = pages.split_digits()
    seen = {image.tobytes() for image in training.ink}
    assert not any(image.tobytes() in seen for image in held_out.ink)
    assert len(held_out.ink) > 800
    again = pages.split_digits()[1]
    np.testing.assert_array_equal(held_out.ink, again.ink)


def test_a_page_shows_its_digit_where_it_says(rng):
    digits, _ = pages.split_digits()
    sources = rng.integers(len(digits.ink), size=300)
    made = pages.make_pages(digits, sources, rng)
    assert made.pixels.dtype == np.uint8
    np.testing.assert_array_equal(made.labels, digits.labels[sources])
    alike = []
    for page, source, (y, x) in zip(made.pixels, sources, made.corners, strict=True):
        window = page[y : y + 8, x : x + 8].astype(float).ravel()
        alike.append(abs(np.corrcoef(window, digits.ink[source].ravel())[0, 1]))
    assert np.median(alike) > 0.8


def test_half_of_the_pages_have_light_ink_on_dark_paper(rng):
    digits, _ = pages.split_digits()
    made = pages.make_pages(digits, rng.integers(len(digits.ink), size=400), rng)
    light_paper = np.median(made.pixels, axis=(1, 2)) > 128
    assert 0.4 < light_paper.mean() < 0.6


def test_windows_have_every_digit_and_more_background_than_digits(rng):
    digits, _ = pages.split_digits()
    windows, labels = pages.make_windows(digits, 1000, rng)
    assert windows.shape == (len(labels), 64)
    assert set(labels) == set(range(11))
    assert np.mean(labels == pages.BACKGROUND) > 0.6


def test_a_network_of_layers_never_changes_its_input(trained):
    made, rows = trained
    before = rows.copy()
    outputs(made, rows)
    np.testing.assert_array_equal(rows, before)
