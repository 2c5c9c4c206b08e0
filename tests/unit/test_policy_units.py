"""Quantities: what operators may write, what they are told, and that shown values read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy import units


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("60ms", 0.06), ("100us", 0.0001), ("2s", 2.0), ("1.5 s", 1.5), ("10m", 600.0), ("1d", 86400)],
)
def test_a_duration_is_read_as_exactly_the_nearest_float(text, duration_s):
    assert units.parse_duration(text) == duration_s


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512MiB", 512 * 2**20), ("1kB", 1000), ("1KiB", 1024), ("0.5GiB", 2**29), ("7B", 7)],
)
def test_a_size_is_read_in_binary_and_decimal_units(text, size_bytes):
    assert units.parse_bytes(text) == size_bytes


def test_a_percentage_becomes_a_ratio():
    assert units.parse_percentage("5%") == 0.05


@pytest.mark.parametrize("number", [60, "60", 60.5])
def test_a_bare_number_is_refused_with_the_units_it_could_have(number):
    with pytest.raises(ValueError, match=rf"^{number} has no unit: write {number}ms or {number}s"):
        units.parse_duration(number)


@pytest.mark.parametrize(
    ("text", "meant"), [("2sec", "s"), ("5min", "m"), ("3MS", "ms"), ("1hours", "h"), ("9µs", "us")]
)
def test_an_unknown_unit_of_time_is_refused_with_the_one_that_was_meant(text, meant):
    with pytest.raises(ValueError, match=rf"did you mean {meant}\?"):
        units.parse_duration(text)


@pytest.mark.parametrize(("text", "meant"), [("512M", "MiB"), ("2G", "GiB"), ("1mb", "MB")])
def test_an_unknown_unit_of_size_is_refused_with_the_one_that_was_meant(text, meant):
    with pytest.raises(ValueError, match=rf"did you mean {meant}\?"):
        units.parse_bytes(text)


@pytest.mark.parametrize(
    "value",
    [None, True, [], {}, "", "ms", "-5ms", "+5ms", "1e3s", "nan", "inf", "5 ms ", "٣ms", "9" * 50],
)
def test_whatever_is_no_quantity_is_refused_with_an_example(value):
    with pytest.raises(ValueError, match="must be a duration such as 60ms, 2s or 10m"):
        units.parse_duration(value)


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0.06, "60ms"), (0.0, "0s"), (600.0, "10m"), (90.0, "90s"), (0.0001, "100us"), (2.5, "2.5s")],
)
def test_a_duration_is_shown_in_the_unit_a_person_would_choose(duration_s, text):
    assert units.format_duration(duration_s) == text


@given(st.integers(1, 10**9), st.sampled_from(sorted(units.DURATION_UNITS)))
def test_every_duration_that_can_be_written_is_shown_so_that_it_reads_back(number, unit):
    duration_s = units.parse_duration(f"{number / 1000:.3f}{unit}")
    assert units.parse_duration(units.format_duration(duration_s)) == duration_s


@given(st.integers(0, 2**50))
def test_every_size_is_shown_so_that_it_reads_back(size_bytes):
    assert units.parse_bytes(units.format_bytes(size_bytes)) == size_bytes


@given(st.integers(0, 100_000))
def test_every_percentage_is_shown_so_that_it_reads_back(thousandths):
    ratio = units.parse_percentage(f"{thousandths / 1000:.3f}%")
    assert units.parse_percentage(units.format_percentage(ratio)) == ratio
