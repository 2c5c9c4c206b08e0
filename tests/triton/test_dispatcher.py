"""A dispatcher inside a real Triton: late binding, plans, and what goes wrong."""

import asyncio
import json
import time

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from governed import kill_model, precompile
from repository import alias_config, to_pbtxt, write_model
from tritonclient.utils import InferenceServerException

from controller.actuation.client import CONTROL, REPORT
from controller.actuation.dispatcher_folder import write
from controller.dispatch.plan import Plan
from controller.dispatch.signed import seal
from controller.policy.model import DispatcherPolicy, ModelPolicy, Objective, VariantPolicy

FAST_S, BEST_S = 0.002, 0.020
LIMIT_S = 0.1
DEADLINE_S = 10.0
KEY = b"0123456789abcdef"
BOTH = Plan(
    ("best", "fast"),
    (0.95, 0.8),
    ((BEST_S + 0.003,) * 8, (FAST_S + 0.003,) * 8),
    (1.1, 1.1),
    0.8 * LIMIT_S,  # clients wait for their own side, too
)


@pytest.fixture
def served(start_triton, tmp_path):
    """A server with two variants, their dispatcher and an alias of it, all loaded by `load`."""
    root = tmp_path / "repository"
    write_model(root, "best", tag=1, delay_s=BEST_S, exponent=0.0)
    write_model(root, "fast", tag=2, delay_s=FAST_S, exponent=0.0)
    precompile(root)
    (tmp_path / "key").write_bytes(KEY)
    policy = ModelPolicy(
        "chat",
        Objective(LIMIT_S, 99.0),
        (VariantPolicy("best", "best", 0.95), VariantPolicy("fast", "fast", 0.8)),
        client_max_batch=4,
        dispatcher=DispatcherPolicy("late", str(tmp_path / "key")),
    )
    list(write([policy], root))
    (root / "chat" / "1").mkdir(parents=True)
    (root / "chat" / "config.pbtxt").write_text(
        to_pbtxt(alias_config("chat", "late", max_batch_size=4))
    )
    return start_triton(root)


class Client:
    """Asks the alias, and commands the dispatcher."""

    def __init__(self, grpc: str) -> None:
        self.client = triton.InferenceServerClient(grpc)
        self.serial = 0

    async def load(self, *names: str) -> None:
        for name in names or ("fast", "best", "late", "chat"):
            await self.client.load_model(name)

    async def ask(self, rows: int = 1, model: str = "chat", value: float = 1.0):
        values = np.full((rows, 1), value, np.float32)
        tensor = triton.InferInput("IN", [rows, 1], "FP32")
        tensor.set_data_from_numpy(values)
        began_s = time.monotonic()
        answer = await self.client.infer(model, [tensor], client_timeout=DEADLINE_S)
        assert (answer.as_numpy("OUT") == values).all()
        assert answer.as_numpy("TAG").shape == (rows, 1)
        return int(answer.as_numpy("TAG")[0, 0]), time.monotonic() - began_s

    async def tell(self, plan: Plan | None = None, *, key: bytes = KEY, serial: int | None = None):
        self.serial = self.serial + 1 if serial is None else serial
        message = seal(key, self.serial, {"plan": None if plan is None else plan.values()})
        tensor = triton.InferInput(CONTROL, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[message]], dtype=np.object_))
        row = triton.InferInput("IN", [1, 1], "FP32")
        row.set_data_from_numpy(np.zeros((1, 1), np.float32))
        answer = await self.client.infer("late", [row, tensor], client_timeout=DEADLINE_S)
        return json.loads(answer.as_numpy(REPORT).ravel()[0])

    async def burst(self, count: int, rate: float):
        began_s, asked = time.monotonic(), []
        for at in range(count):
            await asyncio.sleep(max(began_s + at / rate - time.monotonic(), 0.0))
            asked.append(asyncio.create_task(self.ask(value=float(at))))
        return await asyncio.gather(*asked, return_exceptions=True)


async def test_a_lone_request_gets_the_best_and_a_burst_what_is_in_time(served):
    own = Client(served.grpc)
    await own.load()
    assert (await own.ask())[0] == 2, "until it is told more it asks the one of least quality"
    report = await own.tell(BOTH)
    assert report["plan"] == ["best", "fast"]
    assert [(await own.ask())[0] for _ in range(3)] == [1, 1, 1]
    answers = await own.burst(1800, 450.0)
    tags = [tag for tag, _ in answers]
    assert 0.05 < tags.count(2) / len(tags) < 0.98
    took_s = np.array([took for _, took in answers])
    # With the best alone, which bears 400 a second, nearly all would be late.
    assert np.mean(took_s <= LIMIT_S) > 0.85, np.quantile(took_s, [0.5, 0.9, 0.99])
    after = await own.tell()
    assert after["completed"] == after["arrived"] == 1800 + 4
    assert after["waiting"] == 0
    assert after["failed"] == 0
    assert sum(after["served"].values()) == 1804
    # By the dispatcher's own clock, of all that came since it had a plan.
    assert after["told_kept"] > 0.95
    assert after["untold"] is None
    assert 0.0 < after["told_s"] <= 20.0 * LIMIT_S
    await own.client.close()


def _plant(folder, file: str, method: str) -> None:
    """Have a method of what a dispatcher loads fail."""
    code = folder / "late" / "1" / "dispatch" / file
    fails = f"\n\ndef _planted(*_):\n    raise RuntimeError('planted')\n\n{method} = _planted\n"
    code.write_text(code.read_text() + fails)


async def test_what_cannot_be_told_costs_no_request(served, tmp_path):
    _plant(tmp_path / "repository", "promise.py", "Promise.tell")
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    assert len(await asyncio.gather(*(own.ask(model="late") for _ in range(20)))) == 20
    report = await own.tell()
    assert (report["completed"], report["failed"]) == (20, 0)
    assert report["untold"] == "RuntimeError: planted"
    await own.client.close()


async def test_a_dispatcher_whose_choice_fails_says_so(served, tmp_path):
    """Then the governor leads clients elsewhere, instead of thinking it well."""
    _plant(tmp_path / "repository", "late_binding.py", "Dispatcher._next")
    own = Client(served.grpc)
    await own.load()
    assert (await own.tell(BOTH))["plan"] == ["best", "fast"]
    planted = "its choice failed: RuntimeError: planted"
    asked = await asyncio.gather(
        *(own.ask(model="late") for _ in range(20)), return_exceptions=True
    )
    assert all(planted in str(one) for one in asked), "nobody is left waiting"
    with pytest.raises(InferenceServerException, match=planted):
        await own.tell()
    with pytest.raises(InferenceServerException, match=planted):
        await own.ask(model="late")
    await own.client.close()


async def test_requests_of_several_rows_get_their_own_back(served):
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    asked = [
        own.ask(rows, value=float(rows * 10 + at)) for at in range(20) for rows in (1, 2, 3, 4)
    ]
    assert len(await asyncio.gather(*asked)) == 80
    with pytest.raises(Exception, match="may have 1 to 4 rows"):
        await own.ask(5, model="late")
    await own.client.close()


async def test_only_the_governor_commands(served):
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    with pytest.raises(Exception, match="not signed"):
        await own.tell(BOTH, key=b"another key of 16")
    with pytest.raises(Exception, match="older"):
        await own.tell(BOTH, serial=1)
    with pytest.raises(Exception, match="refused"):
        await own.tell(BOTH._replace(names=()), serial=9)
    assert (await own.tell(serial=10))["plan"] == ["best", "fast"]
    await own.client.close()


async def test_a_variant_that_is_gone_costs_no_request(served):
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    asked = asyncio.create_task(own.burst(400, 100.0))
    await asyncio.sleep(1.0)
    await own.client.unload_model("best")
    await asyncio.sleep(1.0)
    await own.load("best")
    answers = await asked
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert {tag for tag, _ in answers} == {1, 2}
    await own.client.close()


def _spoil(root, model: str, lines: str) -> None:
    """Have a variant do something before it executes a batch of `requests`, of so many `rows`."""
    code = root / model / "1" / "model.py"
    first = "        rows = [self.rows(request) for request in requests]\n"
    assert first in code.read_text()
    code.write_text(code.read_text().replace(first, f"{first}        {lines}\n"))


async def test_a_variant_that_only_fails_costs_no_request(served, tmp_path):
    """Triton says that it is ready all the same."""
    _spoil(tmp_path / "repository", "best", "raise RuntimeError('CUDA error, planted')")
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    answers = await own.burst(200, 100.0)
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert {tag for tag, _ in answers} == {2}
    report = await own.tell()
    assert report["failed"] == 0
    assert "planted" in report["shunned"]["best"]
    await own.client.close()


async def test_a_request_that_cannot_be_served_fails_alone(served, tmp_path):
    bad = (
        "any(pb_utils.get_input_tensor_by_name(one, 'IN').as_numpy().min() < 0 for one in requests)"
    )
    for model in ("best", "fast"):
        _spoil(tmp_path / "repository", model, f"if {bad}: raise ValueError('bad bytes')")
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    values = [float(at) if at % 20 != 7 else -1.0 for at in range(60)]
    asked = [own.ask(model="late", value=value) for value in values]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    failed = [str(answer) for answer in answers if isinstance(answer, BaseException)]
    assert len(failed) == 3
    assert all("bad bytes" in problem for problem in failed)
    report = await own.tell()
    assert (report["completed"], report["failed"]) == (57, 3)
    assert report["shunned"] == {}, "it was no variant's fault"
    await own.client.close()


async def test_a_variant_that_does_not_answer_is_left(served, tmp_path):
    root = tmp_path / "repository"
    _spoil(root, "best", "time.sleep(5.0)")
    code = root / "late" / "1" / "dispatch" / "shunned.py"
    limits = "_SILENT, _SILENT_S, _SILENT_UNKNOWN_S = 20.0, 10.0, 60.0"
    assert limits in code.read_text()
    code.write_text(code.read_text().replace(limits, limits.replace("10.0", "1.0")))
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    asked = []
    for _ in range(3):
        asked.append(asyncio.create_task(own.ask(model="late")))
        await asyncio.sleep(0.2)
    # Both threads wait for it, and nobody takes the third.
    for _ in range(15):
        await asyncio.sleep(0.1)
        report = await own.tell()
    assert report["shunned"] == {"best": "it did not answer"}
    *lost, answer = await asyncio.gather(*asked, return_exceptions=True)
    assert all("best does not answer" in str(one) for one in lost), lost
    tag, took_s = answer
    assert (tag, took_s < 2.5) == (2, True)
    assert [(await own.ask(model="late"))[0] for _ in range(3)] == [2, 2, 2]
    await asyncio.sleep(4.5)  # what was given up comes back, and does no harm
    assert (await own.ask(model="late"))[0] == 2
    report = await own.tell()
    assert report["completed"] + report["failed"] == report["arrived"]
    await own.client.close()


async def test_what_waits_is_answered_when_it_is_unloaded(served):
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    asked = [asyncio.create_task(own.ask(model="late")) for _ in range(40)]
    await asyncio.sleep(0.05)
    await own.client.unload_model("chat")
    await own.client.unload_model("late")
    assert len(await asyncio.gather(*asked)) == 40
    await own.client.close()


async def test_it_is_there_again_after_its_process_died(served):
    own = Client(served.grpc)
    await own.load()
    await own.tell(BOTH)
    waiting = [asyncio.create_task(own.ask()) for _ in range(20)]
    await asyncio.sleep(0.01)
    kill_model(served.pid, "late")
    for _ in range(3):
        began_s = time.monotonic()
        with pytest.raises(InferenceServerException, match="not healthy"):
            await own.ask()
        assert time.monotonic() - began_s < 5.0, "at once, and no client waits for its deadline"
    # Triton does not start it again by itself, and does not unload it either, as what its process
    # had taken over is never answered. Another config makes it anew beside what is left.
    config = await own.client.get_model_config("late", as_json=True)
    config["config"]["parameters"]["renewed"] = {"string_value": "1"}
    await own.client.load_model("late", config=json.dumps(config["config"]), client_timeout=20.0)
    own.serial = 0
    assert (await own.tell(BOTH))["plan"] == ["best", "fast"]
    assert (await own.ask())[0] == 1
    lost = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(isinstance(one, InferenceServerException) for one in lost)
    await own.client.unload_model("chat")
    assert (await own.ask(model="late"))[0] == 1
    await own.client.close()
