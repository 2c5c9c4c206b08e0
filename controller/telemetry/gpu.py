"""GPUs as NVML tells them, through the real bindings.

Owns the library's life (load, init, re-init after a lost GPU or a driver reload) and one query
function in which "not supported" is None. It runs in a thread of its own, since a sick driver
hangs. It must not crash for anything a driver, a container or a missing GPU can do.
"""

import contextlib
import importlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import psutil

from controller.policy.model import GpuPolicy, GpuSource
from controller.telemetry.cards import Cards
from controller.telemetry.observation import GpuReading, SourceHealth
from controller.telemetry.source import Backoff, Clock, Ledger, ThreadSource, silence_s

CADENCE_S = 0.2
_ABSENT_CADENCE_S = 1.0
_ABSENT_RETRY_S = 30.0
_OWNER_MEMORY_S = 10.0
_RENEW = Backoff(1.0, 30.0)
_HZ_PER_MHZ = 1_000_000.0
_MILLI = 1e-3
_SERVER = "tritonserver"
_REASONS = (  # NVML's bits for why clocks are held down
    (0x0000000000000002, "applications_clocks"),
    (0x0000000000000004, "sw_power_cap"),
    (0x0000000000000008, "hw_slowdown"),
    (0x0000000000000010, "sync_boost"),
    (0x0000000000000020, "sw_thermal"),
    (0x0000000000000040, "hw_thermal"),
    (0x0000000000000080, "hw_power_brake"),
    (0x0000000000000100, "display_clocks"),
    (0x0000000000000200, "board_limit"),
    (0x0000000000000400, "reliability"),
)  # idle (bit 0) is no throttling


class GpuError(Exception):
    """NVML does not work; the message says why and what to do."""


class GpuAbsentError(Exception):
    """There is no GPU here, which is no failure."""


class TritonProcesses:
    """Tells which processes belong to a Triton server, itself or a backend's child."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._known: dict[int, tuple[float, bool]] = {}

    def __call__(self, pid: int) -> bool:
        """Return whether this process is Triton's; a vanished or hidden one is not."""
        now_s = self._now_s()
        known = self._known.get(pid)
        if known is not None and now_s - known[0] < _OWNER_MEMORY_S:
            return known[1]
        if len(self._known) > 1000:
            self._known.clear()
        answer = _is_tritons(pid)
        self._known[pid] = (now_s, answer)
        return answer


def _is_tritons(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return any(_SERVER in item.name() for item in (process, *process.parents()))
    except (psutil.Error, OSError):
        return False


class NvmlSampler:
    """Reads all watched GPUs once per call; keeps NVML initialised between calls."""

    def __init__(
        self,
        policy: GpuPolicy,
        *,
        is_tritons: Callable[[int], bool] | None = None,
        now_s: Callable[[], float] = time.monotonic,
        cards: Cards | None = None,
    ) -> None:
        self.detail: str | None = None
        self._now_s = now_s
        self._renewals = 0  # since a device began to be sick
        self._renew_s = 0.0
        self._policy = policy
        self._is_tritons = is_tritons or TritonProcesses()
        self._nvml: ModuleType | None = None
        self._ready = False
        self._cards = Cards() if cards is None else cards

    def sample(self) -> tuple[GpuReading, ...]:
        """Return one reading per watched GPU; a sick one has its `error`.

        Raises:
            GpuAbsentError: there is no NVML library, or no GPU.
            GpuError: NVML is there and does not work.
        """
        nvml = self._init()
        try:
            count = int(nvml.nvmlDeviceGetCount())
            if count == 0:
                raise GpuAbsentError("the driver sees no GPU")
            wanted = range(count) if self._policy.devices is None else self._policy.devices
            found = [self._read_device(nvml, index, count) for index in wanted]
            readings = self._cards.told(found, self._policy.devices)
        except nvml.NVMLError as error:
            self.close()
            raise GpuError(_explain(nvml, error)) from error
        self._renew_for_the_lost(readings)
        names = ", ".join(_describe(reading) for reading in readings)
        self.detail = names or "gpu: none"
        return readings

    def close(self) -> None:
        """Shut NVML down, so that the next sample initialises it anew."""
        if self._nvml is not None and self._ready:
            self._ready = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _renew_for_the_lost(self, readings: tuple[GpuReading, ...]) -> None:
        """Initialise anew now and then: a lost GPU comes back, if ever, only to those who do."""
        if all(reading.error is None for reading in readings):
            self._renewals = 0
            return
        now_s = self._now_s()
        if self._renewals == 0 or now_s >= self._renew_s:
            self._renewals += 1
            self._renew_s = now_s + _RENEW.delay_s(self._renewals)
            self.close()

    def _init(self) -> ModuleType:
        if self._nvml is None:
            # Lazily: without a GPU nothing of this is needed, and the module is large.
            self._nvml = importlib.import_module("pynvml")
        nvml = self._nvml
        if not self._ready:
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:
                if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                    raise GpuAbsentError("the NVML library was not found") from error
                if error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
                    raise GpuAbsentError("the NVIDIA driver is not loaded") from error
                raise GpuError(_explain(nvml, error)) from error
            self._ready = True
        return nvml

    def _read_device(self, nvml: ModuleType, index: int, count: int) -> GpuReading:
        if index >= count:
            error = f"the policy wants GPU {index} of {count}"
            return GpuReading(index, None, None, error=error, lost=True)
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            lost = error.value in _lost(nvml)
            return GpuReading(index, None, None, error=_explain(nvml, error), lost=lost)
        ask = _Questions(nvml, handle)
        utilization = ask("nvmlDeviceGetUtilizationRates")
        memory = ask("nvmlDeviceGetMemoryInfo")
        mig = ask("nvmlDeviceGetMigMode")
        return GpuReading(
            index=index,
            uuid=_text(ask("nvmlDeviceGetUUID")),
            name=_text(ask("nvmlDeviceGetName")),
            utilization_ratio=None if utilization is None else utilization.gpu / 100.0,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            sm_clock_hz=_scaled(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), _HZ_PER_MHZ),
            memory_clock_hz=_scaled(
                ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), _HZ_PER_MHZ
            ),
            throttle_reasons=_reasons(ask("nvmlDeviceGetCurrentClocksThrottleReasons")),
            power_watts=_scaled(ask("nvmlDeviceGetPowerUsage"), _MILLI),
            power_limit_watts=_scaled(ask("nvmlDeviceGetEnforcedPowerLimit"), _MILLI),
            temperature_celsius=_scaled(
                ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU), 1.0
            ),
            triton_memory_bytes=self._triton_memory(ask("nvmlDeviceGetComputeRunningProcesses")),
            mig=None if mig is None else mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
            error=ask.error,
            lost=ask.lost,
        )

    def _triton_memory(self, processes: list[Any] | None) -> int | None:
        """Return what Triton's processes hold; None where that cannot be told."""
        if processes is None:
            return None
        used = [item.usedGpuMemory for item in processes if self._is_tritons(int(item.pid))]
        # In a container other processes' ids are hidden, and some drivers hide the sizes.
        if not used or any(size is None for size in used):
            return None
        return int(sum(used))


class _Questions:
    """Asks one device; "not supported" is None, and a lost device is asked no further."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self.error: str | None = None
        self._nvml = nvml
        self._handle = handle
        self.lost = False  # nothing runs on it any more
        self._ended = False
        self._absent = {
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,  # an older driver
            nvml.NVML_ERROR_NO_PERMISSION,  # MIG and containers refuse single questions
            nvml.NVML_ERROR_NOT_FOUND,
            nvml.NVML_ERROR_NO_DATA,
        }

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Return the answer, or None."""
        if self._ended:
            return None
        nvml = self._nvml
        try:
            return getattr(nvml, function)(self._handle, *arguments)
        except nvml.NVMLError as error:
            if error.value not in self._absent:
                self.error = self.error or _explain(nvml, error)
                # After any of these no question has an answer; some would hang.
                uninitialised = error.value == nvml.NVML_ERROR_UNINITIALIZED
                self.lost = error.value in _lost(nvml)
                self._ended = self.lost or uninitialised
        except (AttributeError, UnicodeDecodeError) as error:
            self.error = self.error or f"{function}: {error}"
        return None


def _lost(nvml: ModuleType) -> frozenset[int]:
    """Return the errors of a GPU on which nothing runs any more."""
    return frozenset({nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED})


def _explain(nvml: ModuleType, error: Any) -> str:
    hints = {
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "the driver was updated under a running kernel module: reload the module or reboot, "
            "then restart the governor"
        ),
        nvml.NVML_ERROR_NO_PERMISSION: (
            "no permission: check the rights on /dev/nvidia* and the service's DeviceAllow"
        ),
        nvml.NVML_ERROR_GPU_IS_LOST: (
            "it fell off the bus (look for Xid 79 in the kernel log): reset it or reboot"
        ),
        nvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset",
    }
    hint = hints.get(error.value)
    return f"NVML: {error}" if hint is None else f"NVML: {error}: {hint}"


def _describe(reading: GpuReading) -> str:
    if reading.error is not None:
        return f"gpu {reading.index}: {reading.error}"
    mig = " (MIG: utilisation is not told)" if reading.mig else ""
    return f"gpu {reading.index}: {reading.name or 'unnamed'}{mig}"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def _reasons(bits: int | None) -> tuple[str, ...] | None:
    if bits is None:
        return None
    return tuple(name for bit, name in _REASONS if bits & bit)


class GpuWatch:
    """The GPU source: absent GPUs are no failure, sick ones are a degraded reading."""

    def __init__(
        self,
        policy: GpuPolicy,
        *,
        clock: Clock,
        is_tritons: Callable[[int], bool] | None = None,
        cards: Cards | None = None,
    ) -> None:
        self._clock = clock
        self._absent: str | None = None
        self._absent_since_s = 0.0
        self._sampler: NvmlSampler | None = None
        self._source: ThreadSource[tuple[GpuReading, ...]] | None = None
        if policy.source is GpuSource.NONE:
            self._absent = "as the policy says"
            return
        self._sampler = NvmlSampler(policy, is_tritons=is_tritons, cards=cards)
        ledger: Ledger[tuple[GpuReading, ...]] = Ledger(
            "gpu", clock=clock, backoff=Backoff(1.0, 30.0), silent_s=silence_s(CADENCE_S)
        )
        self._source = ThreadSource(
            ledger, self._sample, cadence_s=CADENCE_S, close=self._sampler.close
        )

    def start(self) -> None:
        """Start the thread, where there is something to watch."""
        if self._source is not None:
            self._source.start()

    def stop(self) -> None:
        """End the thread."""
        if self._source is not None:
            self._source.stop()

    def readings(self, now_s: float, stale_after_s: float) -> tuple[GpuReading, ...]:
        """Return the newest readings; those that are too old are absent."""
        if self._source is None or self._absent is not None:
            return ()
        age_s = self._source.ledger.age_s(now_s)
        if age_s is None or age_s > max(stale_after_s, silence_s(CADENCE_S)):
            return ()
        return self._source.ledger.reading or ()

    def health(self, now_s: float) -> SourceHealth:
        """Return how well it does; without a GPU it is up and says so."""
        if self._source is None:
            return SourceHealth("gpu", True, None, 0, None, f"gpu: none ({self._absent})")
        ledger = self._source.ledger
        health = ledger.health(now_s)
        if self._absent is not None and health.up:
            detail = f"gpu: none ({self._absent})"
            return SourceHealth("gpu", True, None, ledger.failures, None, detail)
        sick = next((r.error for r in ledger.reading or () if r.error is not None), None)
        return SourceHealth(
            "gpu",
            health.up and sick is None,
            health.age_s,
            health.failures,
            health.error or sick,
            self._sampler.detail if self._sampler is not None else None,
        )

    def _sample(self) -> tuple[GpuReading, ...]:
        assert self._sampler is not None  # noqa: S101 - this thread exists with it only
        assert self._source is not None  # noqa: S101 - likewise
        readings = self._look(self._sampler, self._source)
        self._source.cadence_s = CADENCE_S if self._absent is None else _ABSENT_CADENCE_S
        return readings

    def _look(
        self, sampler: NvmlSampler, source: ThreadSource[tuple[GpuReading, ...]]
    ) -> tuple[GpuReading, ...]:
        now_s = self._clock()
        if self._absent is not None and now_s - self._absent_since_s < _ABSENT_RETRY_S:
            return ()
        try:
            readings = sampler.sample()
        except GpuAbsentError as error:
            sampler.close()
            if source.ledger.reading:
                raise GpuError(f"the GPU was there and is gone: {error}") from error
            self._absent, self._absent_since_s = str(error), now_s
            return ()
        self._absent = None
        return readings
