"""The real NVML bindings against a fake `libnvidia-ml.so.1` which the loader finds.

The library is compiled here and comes first on LD_LIBRARY_PATH of a child process, so that the
bindings' own way of loading it is what is tested.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_nvml import FAKE, compile_fake

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED = 3, 4, 9
FUNCTION_NOT_FOUND, GPU_IS_LOST, MISMATCH, UNKNOWN = 13, 15, 18, 999


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_fake(tmp_path_factory.mktemp("nvml"))


class Gpu:
    """The probe's process, and the file that tells the fake how to behave."""

    def __init__(self, library: Path | None, file: Path, devices: list[int] | None) -> None:
        self._file = file
        self.behave()
        environment = {**os.environ, "FAKE_NVML_FILE": str(file)}
        environment["PROBE_DEVICES"] = json.dumps(devices)
        if library is not None:
            environment["LD_LIBRARY_PATH"] = str(library)
        self._process = subprocess.Popen(
            [sys.executable, str(FAKE / "probe.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def behave(self, *lines: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self._file)

    def ask(self, word: str) -> dict:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def until(self, what: Callable[[dict], bool], within_s: float = 10.0) -> dict:
        deadline_s = time.monotonic() + within_s
        while True:
            answer = self.ask("health")
            if what(answer) or time.monotonic() > deadline_s:
                return answer
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def gpu(library: Path, tmp_path: Path) -> Iterator[Callable[..., Gpu]]:
    opened: list[Gpu] = []

    def build(*, devices: list[int] | None = None, fake: bool = True) -> Gpu:
        opened.append(Gpu(library if fake else None, tmp_path / "behaviour", devices))
        return opened[-1]

    yield build
    for item in opened:
        item.close()


def test_a_healthy_gpu_is_read_in_base_units(gpu):
    probe = gpu()
    probe.behave("throttle 0x24")
    (reading,) = probe.ask("sample")["readings"]
    assert reading == {
        "index": 0,
        "uuid": "GPU-fake-0",
        "name": "Fake H0",
        "utilization_ratio": 0.73,
        "memory_used_bytes": 20 << 30,
        "memory_total_bytes": 80 << 30,
        "sm_clock_hz": 1.98e9,
        "memory_clock_hz": 2.619e9,
        "throttle_reasons": ["sw_power_cap", "sw_thermal"],
        "power_watts": 350.5,
        "power_limit_watts": 700.0,
        "temperature_celsius": 64.0,
        "triton_memory_bytes": None,
        "mig": False,
        "error": None,
        "lost": False,
    }


def test_what_is_not_supported_is_absent_and_no_error(gpu):
    probe = gpu()
    probe.behave(
        f"nvmlDeviceGetPowerUsage {NOT_SUPPORTED}",
        f"nvmlDeviceGetUtilizationRates {NOT_SUPPORTED}",
        f"nvmlDeviceGetMigMode {FUNCTION_NOT_FOUND}",
        f"nvmlDeviceGetTemperature {NO_PERMISSION}",
    )
    (reading,) = probe.ask("sample")["readings"]
    absent = ("power_watts", "utilization_ratio", "mig", "temperature_celsius")
    assert [reading[name] for name in absent] == [None] * 4
    assert reading["sm_clock_hz"] == 1.98e9
    assert reading["error"] is None


def test_memory_of_tritons_processes_is_summed_and_others_are_not(gpu):
    probe = gpu()
    probe.behave(f"process {os.getpid()} 1000", f"process {os.getpid()} 24", "process 1 5000")
    assert probe.ask("sample")["readings"][0]["triton_memory_bytes"] == 1024


def test_memory_of_a_vanished_process_or_one_of_unknown_size_is_absent(gpu):
    probe = gpu()
    probe.behave("process 4194305 5000")
    assert probe.ask("sample")["readings"][0]["triton_memory_bytes"] is None
    probe.behave(f"process {os.getpid()} na")
    assert probe.ask("sample")["readings"][0]["triton_memory_bytes"] is None


def test_only_the_devices_that_the_policy_names_are_read(gpu):
    probe = gpu(devices=[2])
    probe.behave("devices 4")
    assert [r["index"] for r in probe.ask("sample")["readings"]] == [2]


def test_a_device_that_is_not_there_is_degraded_and_says_so(gpu):
    probe = gpu(devices=[0, 5])
    first, second = probe.ask("sample")["readings"]
    assert first["error"] is None
    assert second["error"] == "the policy wants GPU 5 of 1"


def test_one_lost_gpu_leaves_the_others_readable(gpu):
    probe = gpu()
    probe.behave("devices 2", f"nvmlDeviceGetUtilizationRates {GPU_IS_LOST} 1")
    first, second = probe.ask("sample")["readings"]
    assert first["utilization_ratio"] == 0.73
    assert "lost" in second["error"]
    assert "reset it or reboot" in second["error"]


def test_of_four_gpus_one_is_lost_and_the_others_are_as_they_were(gpu):
    probe = gpu()
    probe.behave("devices 4", "used 1073741824 3")
    before = probe.ask("sample")["readings"]
    assert [(r["index"], r["lost"]) for r in before] == [(at, False) for at in range(4)]
    assert [r["memory_used_bytes"] >> 30 for r in before] == [20, 20, 20, 1]
    probe.behave("devices 4", f"nvmlDeviceGetHandleByIndex {GPU_IS_LOST} 2")
    during = probe.ask("sample")["readings"]
    assert [r["lost"] for r in during] == [False, False, True, False]
    assert "fell off the bus" in during[2]["error"]
    # Initialised anew, the driver counts three, and what was GPU 3 is its third.
    probe.behave("devices 3", "gone 2")
    after = probe.ask("sample")["readings"]
    assert [r["uuid"] for r in after] == [f"GPU-fake-{at}" for at in range(4)]
    assert [r["index"] for r in after] == [0, 1, 2, 3]
    assert [r["lost"] for r in after] == [False, False, True, False]
    probe.behave("devices 4")
    assert probe.ask("sample")["readings"][2]["lost"] is False


@pytest.mark.parametrize("function", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"])
def test_an_error_that_is_no_loss_is_told_as_none(gpu, function):
    probe = gpu()
    probe.behave("devices 2", f"{function} {UNKNOWN} 1")
    first, second = probe.ask("sample")["readings"]
    assert (first["lost"], second["lost"]) == (False, False)
    assert second["error"] is not None


def test_a_lost_gpu_that_comes_back_is_read_again(gpu):
    probe = gpu()
    probe.behave(f"nvmlDeviceGetHandleByIndex {GPU_IS_LOST}")
    assert "lost" in probe.ask("sample")["readings"][0]["error"]
    probe.behave()
    assert probe.ask("sample")["readings"][0]["error"] is None


def test_mig_is_told_and_utilisation_is_absent(gpu):
    probe = gpu()
    probe.behave("mig 1")
    (reading,) = probe.ask("sample")["readings"]
    assert (reading["mig"], reading["utilization_ratio"], reading["error"]) == (True, None, None)
    probe.ask("watch")
    assert "MIG" in probe.until(lambda a: a["health"]["detail"] is not None)["health"]["detail"]


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (f"nvmlInit {MISMATCH}", "reload the module or reboot"),
        (f"nvmlInit {NO_PERMISSION}", "no permission"),
        (f"nvmlInit {UNKNOWN}", "NVML"),
        (f"nvmlDeviceGetCount {UNKNOWN}", "NVML"),
    ],
)
def test_an_nvml_that_does_not_work_is_down_with_what_to_do_and_recovers(gpu, behaviour, words):
    probe = gpu()
    probe.behave(behaviour)
    assert words in probe.ask("sample")["GpuError"]
    probe.behave()
    assert probe.ask("sample")["readings"][0]["name"] == "Fake H0"


@pytest.mark.parametrize("behaviour", ["devices 0", f"nvmlInit {DRIVER_NOT_LOADED}"])
def test_a_machine_without_a_gpu_is_up_and_says_none(gpu, behaviour):
    probe = gpu()
    probe.behave(behaviour)
    probe.ask("watch")
    answer = probe.until(lambda a: a["health"]["detail"] is not None)
    assert answer["health"]["up"]
    assert answer["health"]["detail"].startswith("gpu: none (")
    assert answer["readings"] == []


def test_a_missing_library_is_no_failure(gpu):
    try:
        import ctypes

        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVML")
    probe = gpu(fake=False)
    assert probe.ask("sample") == {"GpuAbsentError": "the NVML library was not found"}


def test_a_gpu_that_disappears_while_watched_is_a_failure_and_not_none(gpu):
    probe = gpu()
    probe.ask("watch")
    assert probe.until(lambda a: a["readings"])["health"]["up"]
    probe.behave("devices 0")
    health = probe.until(lambda a: not a["health"]["up"])["health"]
    assert not health["up"]
    assert "gone" in health["error"]
    assert health["failures"] >= 1


def test_a_driver_that_hangs_holds_only_its_own_thread(gpu):
    probe = gpu()
    probe.ask("watch")
    assert probe.until(lambda a: a["readings"])["health"]["up"]
    probe.behave("nvmlDeviceGetPowerUsage hang")
    answer = probe.until(lambda a: not a["health"]["up"])
    assert "hangs" in answer["health"]["error"]
    assert answer["took_s"] < 0.05
    probe.until(lambda a: not a["readings"])  # too old to be true
    assert probe.ask("stop")["took_s"] < 1.0
