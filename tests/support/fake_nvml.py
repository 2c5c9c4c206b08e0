"""The fake `libnvidia-ml.so.1` of tests/integration/fake_nvml, compiled where it is needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

FAKE = Path(__file__).parents[1] / "integration" / "fake_nvml"


def compile_fake(folder: Path) -> Path:
    """Compile it into a folder, to come first on LD_LIBRARY_PATH; return the folder."""
    compiler = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)
    if compiler is None:
        pytest.skip("no C compiler to build the fake NVML with")
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror"),
            *("-Wl,-soname,libnvidia-ml.so.1", "-o", str(folder / "libnvidia-ml.so.1")),
            str(FAKE / "fake.c"),
        ],
        check=True,
    )
    return folder
