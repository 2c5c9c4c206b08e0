"""Whether there is memory for a load, from readings alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.actuation.memory import MemoryWatch, Used
from controller.policy.model import (
    MemoryPolicy,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)
from controller.telemetry.observation import GpuReading, HostReading

GIB = 1 << 30
SIZES = st.integers(0, 1 << 42)


def watch(*, host=None, gpu=None, reserve=GIB, free_host=None, free_gpus=()):
    """Return the watch of one variant `big` that needs `host` and `gpu` bytes."""
    variants = (VariantPolicy("big", "big", 0.9, host, gpu), VariantPolicy("small", "small", 0.8))
    policy = Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=(ModelPolicy("chat", Objective(0.06, 99.0), variants),),
        memory=MemoryPolicy(reserve),
    )
    total = 1 << 43
    reading = None
    if free_host is not None:
        reading = HostReading(memory_used_bytes=total - free_host, memory_total_bytes=total)
    gpus = [
        GpuReading(
            index,
            None,
            None,
            memory_used_bytes=None if free is None else total - free,
            memory_total_bytes=total,
        )
        for index, free in enumerate(free_gpus)
    ]
    return MemoryWatch(policy, lambda: reading, lambda: gpus)


@given(need=SIZES.filter(bool), free=SIZES, reserve=SIZES)
def test_a_load_is_refused_where_it_would_leave_less_than_the_reserve(need, free, reserve):
    refused = watch(host=need, free_host=free, reserve=reserve).why_not("big")
    assert (refused is not None) == (need + reserve > free)


@given(need=SIZES.filter(bool), free=st.lists(SIZES, min_size=1, max_size=4))
def test_every_watched_gpu_needs_room(need, free):
    refused = watch(gpu=need, free_gpus=free, reserve=0).why_not("big")
    assert (refused is not None) == (min(free) < need)


def test_the_refusal_says_what_where_and_which_setting():
    why = watch(gpu=24 * GIB, free_gpus=(30 * GIB, 3 * GIB)).why_not("big")
    assert why == (
        "memory is short: it needs 24GiB of GPU 1, 1GiB must stay free (memory.reserve), and there "
        "are 3.0 GiB"
    )


@pytest.mark.parametrize(
    "unknown",
    [
        watch(free_host=0),  # nothing declared
        watch(host=GIB),  # the host cannot be read
        watch(gpu=GIB),  # no GPU is watched
        watch(gpu=GIB, free_gpus=(None,)),  # NVML does not tell
    ],
)
def test_what_is_not_known_refuses_nothing(unknown):
    assert unknown.why_not("big") is None
    assert unknown.why_not("nobody") is None
    assert unknown.is_back("big", unknown.free_bytes("big"))


def test_where_two_models_list_one_variant_the_larger_need_counts():
    need, less = VariantPolicy("big", "big", 0.9, 8 * GIB), VariantPolicy("other", "big", 0.9)
    models = [
        ModelPolicy(name, Objective(0.06, 99.0), (v,)) for name, v in (("a", need), ("b", less))
    ]
    for order in (models, models[::-1]):
        policy = Policy(TritonPolicy("127.0.0.1:1", None, None), tuple(order))
        host = HostReading(memory_used_bytes=0, memory_total_bytes=4 * GIB)
        assert MemoryWatch(policy, lambda host=host: host, tuple).why_not("big") is not None


def test_memory_is_back_when_most_of_what_was_declared_is_free_again():
    before = watch(host=4 * GIB, free_host=10 * GIB).free_bytes("big")
    assert before == {"the host": 10 * GIB}
    assert not watch(host=4 * GIB, free_host=11 * GIB).is_back("big", before)
    assert watch(host=4 * GIB, free_host=13 * GIB).is_back("big", before)


# -- the budget --------------------------------------------------------------------------------


def limited(budget, *, triton=0, used=None, **declared):
    """Return a watch with a GPU budget, of variants that declare so much, and set what is seen."""
    variants = tuple(VariantPolicy(k, k, 0.9, None, v) for k, v in declared.items())
    policy = Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=(ModelPolicy("chat", Objective(0.06, 99.0), variants),),
        memory=MemoryPolicy(0, gpu_budget_bytes=budget),
    )
    now = {"triton": triton}

    def gpus():
        held = now["triton"]
        if held is None:
            return ()
        total = 1 << 43
        return (
            GpuReading(
                0,
                None,
                None,
                memory_used_bytes=held,
                memory_total_bytes=total,
                triton_memory_bytes=held,
            ),
        )

    found = MemoryWatch(policy, lambda: None, gpus)
    return found, now


def test_a_load_is_refused_where_the_budget_is_full():
    watch, _ = limited(10 * GIB, a=4 * GIB, b=5 * GIB, c=2 * GIB)
    assert watch.why_not("b", ["a"]) is None
    assert watch.why_not("c", ["a", "b"]) == (
        "the memory budget is full: it needs 2.0 GiB, and of 10.0 GiB (memory.gpu_budget, less "
        "what Triton holds besides) 9.0 GiB are held"
    )
    again = watch.why_not("a", ["a", "b"])
    assert again is not None
    assert "once more while it is reloaded" in again


def test_what_a_variant_was_seen_to_take_counts_if_it_is_more():
    watch, now = limited(10 * GIB, a=4 * GIB, b=None)
    measured = watch.measured = {}
    before = watch.used_bytes()
    now["triton"] = 6 * GIB
    measured["a"] = watch.took_bytes("a", before)
    assert measured == {"a": {"0": 6 * GIB}}
    assert watch.budget().need("a").gpu_bytes == 6 * GIB
    # Less the next time is believed slowly: the most it holds is what matters.
    now["triton"] = 0
    before = watch.used_bytes()
    now["triton"] = 1 * GIB
    assert watch.took_bytes("a", before) == {"0": round(0.9 * 6 * GIB)}


def test_a_variant_that_holds_nothing_of_a_gpu_is_measured_too():
    watch, _ = limited(10 * GIB, cpu=None, big=9 * GIB)
    watch.measured = {"cpu": watch.took_bytes("cpu", watch.used_bytes())}
    assert watch.measured == {"cpu": {"0": 0}}
    assert not watch.is_to_be_measured("cpu")
    assert watch.why_not("cpu", ["big"]) is None


def test_the_first_process_of_triton_on_a_gpu_took_what_it_holds():
    # Before it there is none to be told apart from the others, who hold 5 GiB.
    watch, now = limited(10 * GIB, a=None)
    before = {0: Used(5 * GIB, None)}
    now["triton"] = 3 * GIB
    assert watch.took_bytes("a", before) == {"0": 3 * GIB}


def test_where_the_driver_does_not_tell_processes_apart_a_measurement_is_no_more_than_the_budget():
    policy_of_one = limited(10 * GIB, a=None, b=4 * GIB)[0]
    whole = [GpuReading(0, None, None, memory_used_bytes=30 * GIB, memory_total_bytes=80 * GIB)]
    policy_of_one._gpus = lambda: whole
    assert policy_of_one.took_bytes("a", {0: Used(5 * GIB, None)}) == {"0": 10 * GIB}
    # Others take and give: what the operator declares is better.
    assert policy_of_one.took_bytes("b", {0: Used(5 * GIB, None)}) is None


def test_what_was_measured_on_one_gpu_is_asked_of_no_other():
    watch, _ = limited(None, a=None)
    total = 10 * GIB
    full = [
        GpuReading(index, None, None, memory_used_bytes=used, memory_total_bytes=total)
        for index, used in enumerate((0, total))
    ]
    watch._gpus = lambda: full
    watch.measured = {"a": {"0": 8 * GIB, "1": 0}}
    assert watch.why_not("a") is None
    assert watch.is_back("a", {"GPU 0": 0})


def test_what_nobody_measured_is_taken_for_the_largest_that_is_known_or_is_loaded_alone():
    watch, _ = limited(10 * GIB, a=None, b=None)
    assert watch.why_not("a", []) is None
    assert watch.why_not("b", ["a"]) is not None
    watch.measured = {"a": {"0": 3 * GIB}}
    assert watch.why_not("b", ["a"]) is None
    assert watch.is_to_be_measured("b")
    assert not watch.is_to_be_measured("a")


def test_what_triton_holds_beside_its_variants_is_not_there_for_them():
    watch, now = limited(16 * GIB, a=4 * GIB, b=11 * GIB)
    now["triton"] = 6 * GIB  # 2 GiB of contexts, or of what failed loads left
    watch.look(["a"])
    assert watch.budget().limit.gpu_bytes == 14 * GIB
    assert watch.why_not("b", ["a"]) is not None
    # A little more or less moves nothing; while a GPU tells nothing, what it told holds.
    for held in (6 * GIB - GIB // 4, None, 6 * GIB):
        now["triton"] = held
        watch.look(["a"])
        assert watch.budget().limit.gpu_bytes == 14 * GIB
    now["triton"] = 4 * GIB
    watch.look(["a"])
    assert watch.budget().limit.gpu_bytes == 16 * GIB


def test_what_was_loaded_before_us_is_taken_for_what_triton_holds():
    watch, now = limited(10 * GIB, a=None, b=None, c=1 * GIB)
    now["triton"] = 7 * GIB
    watch.look(["a", "b", "c"])
    budget = watch.budget()
    assert budget.need("a").gpu_bytes == budget.need("b").gpu_bytes == 3 * GIB
    assert budget.limit.gpu_bytes == 10 * GIB


def test_without_a_gpu_nothing_is_measured_and_what_is_declared_counts():
    watch, now = limited(10 * GIB, a=4 * GIB, b=8 * GIB)
    now["triton"] = None
    assert watch.used_bytes() == {}
    assert watch.took_bytes("a", {}) is None
    assert watch.why_not("b", ["a"]) is not None
    watch, now = limited(10 * GIB, a=None, b=None)
    now["triton"] = None
    assert watch.why_not("b", ["a"]) is None


# -- of the host, by Triton's processes -----------------------------------------------------------


def on_host(budget, *, triton=0, free=1 << 42, **declared):
    """Return a watch with a budget of the host, and what Triton's processes hold of it."""
    variants = tuple(VariantPolicy(k, k, 0.9, v) for k, v in declared.items())
    policy = Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=(ModelPolicy("chat", Objective(0.06, 99.0), variants),),
        memory=MemoryPolicy(0, host_budget_bytes=budget),
    )
    now = {"triton": triton}
    host = HostReading(memory_used_bytes=0, memory_total_bytes=free)
    return MemoryWatch(policy, lambda: host, tuple, lambda: now["triton"]), now


@given(ballast=SIZES, more=st.integers(-GIB, GIB), declared=st.none() | SIZES)
def test_the_host_is_measured_and_what_is_declared_counts_if_it_is_more(ballast, more, declared):
    watch, _ = on_host(1 << 43, a=declared)
    took = watch.took_host_bytes("a", GIB, GIB + ballast)
    assert took == ballast
    watch.measured = {"a": {"host": took}}
    assert watch.budget().need("a").host_bytes == max(ballast, declared or 0)
    assert watch.budget().need("a").gpu_bytes == 0.0
    # More is believed at once, less slowly.
    again = watch.took_host_bytes("a", 2 * GIB, 2 * GIB + ballast + more)
    assert again == max(ballast + more, round(0.9 * ballast), 0)


def test_what_nobody_measured_of_the_host_is_taken_for_the_largest_or_is_loaded_alone():
    watch, _ = on_host(10 * GIB, a=None, b=None, c=None)
    # As long as nobody read what Triton holds, what is declared has to do.
    assert watch.why_not("b", ["a"]) is None
    assert watch.read_host() == 0
    assert watch.is_host_guessed("a")
    assert watch.why_not("a", []) is None
    assert watch.why_not("b", ["a"]) is not None
    watch.measured = {"a": {"host": 4 * GIB}}
    assert not watch.is_host_guessed("a")
    assert watch.why_not("b", ["a"]) is None
    assert watch.why_not("c", ["a", "b"]) == (
        "the memory budget is full: it needs 4.0 GiB, and of 10.0 GiB (memory.host_budget) 8.0 GiB "
        "are held"
    )
    assert watch.why_not("a", ["a", "b"]) is not None, "a reload holds it twice"


def test_what_was_loaded_before_us_is_taken_for_what_triton_holds_of_the_host():
    watch, now = on_host(10 * GIB, a=None, b=None, c=1 * GIB)
    now["triton"] = 7 * GIB
    held = ["a", "b", "c"]
    assert watch.is_host_to_be_read(held)
    watch.share_host(held, watch.read_host())
    assert not watch.is_host_to_be_read(held)
    budget = watch.budget()
    assert [budget.need(name).host_bytes for name in held] == [3 * GIB, 3 * GIB, 1 * GIB]


def test_where_nobody_sees_tritons_processes_what_is_declared_counts():
    watch, now = on_host(10 * GIB, a=4 * GIB, b=None)
    now["triton"] = None
    assert watch.read_host() is None
    assert not watch.is_host_guessed("b")
    assert watch.budget().need("b").host_bytes == 0.0
    assert watch.why_not("b", ["a"]) is None
    nobody = MemoryWatch(Policy(watch_policy().triton, watch_policy().models), lambda: None, tuple)
    assert nobody.read_host() is None


def watch_policy():
    variants = (VariantPolicy("a", "a", 0.9),)
    return Policy(
        triton=TritonPolicy("127.0.0.1:1", None, None),
        models=(ModelPolicy("chat", Objective(0.06, 99.0), variants),),
    )


def test_what_was_measured_of_the_host_must_be_free_but_is_not_waited_for_after_an_unload():
    watch, _ = on_host(None, free=6 * GIB, a=None)
    watch.measured = {"a": {"host": 8 * GIB}}
    assert watch.why_not("a") == (
        "memory is short: it needs 8GiB of the host, 0B must stay free (memory.reserve), and there "
        "are 6.0 GiB"
    )
    assert watch.free_bytes("a") == {}


def test_what_was_measured_of_the_host_is_none_of_a_gpus():
    watch, _ = limited(10 * GIB, a=None)
    watch.measured = {"a": {"host": 8 * GIB}}
    assert watch.is_to_be_measured("a")
    assert watch.budget().need("a").host_bytes == 8 * GIB
    watch.measured = {"a": {"host": 8 * GIB, "0": 2 * GIB}}
    assert not watch.is_to_be_measured("a")
    assert watch.budget().need("a").gpu_bytes == 2 * GIB
