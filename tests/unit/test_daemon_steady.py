"""What is asked of the garbage collector and of the C library."""

import platform
import subprocess
import sys

import pytest

# Arrays of four megabytes together, made and dropped as a tick does; prints how many pages the
# kernel had to hand out in fifty ticks, and how many young objects are collected at a time.
TICKS = """
import gc, resource, sys
import numpy as np
from controller.daemon.steady import settle

if sys.argv[1] == "settled":
    settle()


def tick():
    held = [np.ones(1 << 17) for _ in range(4)]
    return sum(one[0] for one in held)


for _ in range(5):
    tick()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    tick()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, gc.get_threshold()[0])
"""


def pages_and_young(how: str) -> tuple[int, int]:
    said = subprocess.run(
        [sys.executable, "-c", TICKS, how], capture_output=True, text=True, check=True
    )
    pages, young = map(int, said.stdout.split())
    return pages, young


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_the_arrays_of_a_tick_are_not_asked_of_the_kernel_again():
    usual, _ = pages_and_young("usual")
    settled, young = pages_and_young("settled")
    assert usual > 10_000
    assert settled < 100
    assert young == 20_000
