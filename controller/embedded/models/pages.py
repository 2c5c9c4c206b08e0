"""Own the task of the sample models: find and read the one digit on a noisy page.

Runs in the server's environment. Makes pages and training windows from scikit-learn's digits;
must not know how they are learned or served.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

PAGE = 80
"""Height and width of a page in pixels, a byte each: a request carries 6,400 bytes a row."""
WINDOW = 8
"""Height and width of a digit, and of the window that slides over the page."""
CLASSES = 10
BACKGROUND = CLASSES
"""The label of a window that does not hold a whole digit."""

_TRAINING_DIGITS = 900
_FRAGMENTS = 4
_TRAINING_SIDE, _TRAINING_FRAGMENTS = 24, 2
_NOISE = 0.08
_MIN_CONTRAST = 0.6
_DISTORTION = 0.10
_SHIFT = 0.25
_INK_RANGE, _INK_ZERO = 0.6, 0.2
_OFFSETS = np.arange(WINDOW)


@dataclass(frozen=True, slots=True)
class Digits:
    """Digit images with ink in [0, 1] and what they show."""

    ink: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages as clients send them, with what they show and where it came from."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]
    corners: NDArray[np.int64]
    fragment_corners: NDArray[np.int64]


def split_digits() -> tuple[Digits, Digits]:
    """Split scikit-learn's digits into training and held-out ones, always the same way."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    ink = (data.images / 16).astype(np.float32)
    return tuple(
        Digits(ink[part], data.target[part].astype(np.int64))
        for part in (order[:_TRAINING_DIGITS], order[_TRAINING_DIGITS:])
    )


def make_pages(
    digits: Digits,
    sources: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    side: int = PAGE,
    fragments: int = _FRAGMENTS,
) -> Pages:
    """Make one page for each source: fragments of other digits, the digit, and noise over all.

    The digit is distorted, has a contrast of its own and an unknown place. Fragments look like
    ink but are no digit, and half of the pages have light ink on dark paper: telling all these
    apart is what a larger network is better at.
    """
    count, places = len(sources), side - WINDOW + 1
    ink = np.zeros((count, side, side), np.float32)
    fragment_corners = []
    for _ in range(fragments):
        pieces = digits.ink[rng.integers(len(digits.ink), size=count)] * _contrast(rng, count)
        corners = rng.integers(places, size=(count, 2))
        _draw(ink, pieces * _cut(rng, count), corners)
        fragment_corners.append(corners)
    corners = rng.integers(places, size=(count, 2))
    _draw(ink, _distort(digits.ink[sources], rng) * _contrast(rng, count), corners)
    ink += rng.normal(0, _NOISE, ink.shape).astype(np.float32)
    light = rng.integers(2, size=(count, 1, 1)).astype(bool)
    shade = np.where(light, 1 - _INK_ZERO - ink * _INK_RANGE, ink * _INK_RANGE + _INK_ZERO)
    pixels = np.clip(shade * 255, 0, 255).astype(np.uint8)
    return Pages(
        pixels, digits.labels[sources], sources, corners, np.stack(fragment_corners, axis=1)
    )


def make_windows(
    digits: Digits, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Make training windows from `count` small pages: about six from each.

    A page gives its digit, near misses, fragments and an empty place. Windows one pixel off are
    left out: they are neither the digit nor background.
    """
    sources = rng.integers(len(digits.ink), size=count)
    pages = make_pages(digits, sources, rng, side=_TRAINING_SIDE, fragments=_TRAINING_FRAGMENTS)
    places = _TRAINING_SIDE - WINDOW + 1
    corners, labels = [pages.corners], [pages.labels]
    fragments = pages.fragment_corners
    for kind in ("near", "near", "fragment", "fragment", "anywhere"):
        if kind == "near":
            step = rng.integers(-5, 6, size=(count, 2))
            place = pages.corners + step
        elif kind == "fragment":
            chosen = fragments[np.arange(count), rng.integers(fragments.shape[1], size=count)]
            place = chosen + rng.integers(-3, 4, size=(count, 2))
        else:
            place = rng.integers(places, size=(count, 2))
        place = np.clip(place, 0, places - 1)
        corners.append(place)
        clear = np.abs(place - pages.corners).max(axis=1) > 1
        labels.append(np.where(clear, BACKGROUND, -1))
    rows = np.tile(np.arange(count), len(corners))[:, None, None]
    at_y, at_x = _grid(np.concatenate(corners))
    windows = pages.pixels[rows, at_y, at_x].reshape(len(rows), WINDOW * WINDOW)
    told = np.concatenate(labels)
    return windows[told >= 0], told[told >= 0]


def to_ink(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn bytes into the ink that the networks are trained on."""
    scale, shift = ink_scale()
    return pixels.astype(np.float32) * np.float32(scale) + np.float32(shift)


def ink_scale() -> tuple[float, float]:
    """Return scale and shift from bytes to ink, to be folded into a first layer."""
    return 1 / (255 * _INK_RANGE), -_INK_ZERO / _INK_RANGE


def _grid(corners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (
        corners[:, 0, None, None] + _OFFSETS[None, :, None],
        corners[:, 1, None, None] + _OFFSETS[None, None, :],
    )


def _draw(
    ink: NDArray[np.float32], images: NDArray[np.float32], corners: NDArray[np.int64]
) -> None:
    rows = np.arange(len(ink))[:, None, None]
    at_y, at_x = _grid(corners)
    ink[rows, at_y, at_x] = np.maximum(ink[rows, at_y, at_x], images)


def _contrast(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return rng.uniform(_MIN_CONTRAST, 1, (count, 1, 1)).astype(np.float32)


def _cut(rng: np.random.Generator, count: int) -> NDArray[np.bool_]:
    """Return masks that keep a random rectangle of three to four pixels a side."""
    size = rng.integers(3, 5, size=(count, 2))
    start = rng.integers(0, WINDOW - size + 1)
    inside = (start[:, :, None] <= _OFFSETS) & ((start + size)[:, :, None] > _OFFSETS)
    return inside[:, 0, :, None] & inside[:, 1, None, :]


def _distort(images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Apply a small random affine map to each image, with bilinear interpolation."""
    count, centre = len(images), (WINDOW - 1) / 2
    matrices = np.eye(2) + rng.normal(0, _DISTORTION, (count, 2, 2))
    shifts = rng.normal(0, _SHIFT, (count, 2, 1))
    grid = np.stack(np.meshgrid(_OFFSETS, _OFFSETS, indexing="ij")).reshape(2, -1) - centre
    padded = np.pad(images, ((0, 0), (1, 2), (1, 2)))
    where = np.clip(matrices @ grid + shifts + centre + 1, 0, WINDOW + 1)
    low = np.floor(where).astype(int)
    (part_y, part_x), (y, x) = np.moveaxis(where - low, 1, 0), np.moveaxis(low, 1, 0)
    row = np.arange(count)[:, None]
    top = padded[row, y, x] * (1 - part_x) + padded[row, y, x + 1] * part_x
    bottom = padded[row, y + 1, x] * (1 - part_x) + padded[row, y + 1, x + 1] * part_x
    return (top * (1 - part_y) + bottom * part_y).reshape(images.shape).astype(np.float32)
