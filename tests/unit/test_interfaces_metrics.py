"""The page that Prometheus scrapes: one golden page, and whatever the document lacks."""

import asyncio
import copy
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from controller.daemon.meters import Durations
from controller.interfaces.metrics import exposition
from controller.interfaces.prometheus import MetricsServer
from controller.interfaces.views import json_ready
from controller.telemetry.observation import GpuReading

GOLDEN = Path(__file__).with_name("golden") / "metrics.txt"
DOCUMENT = json.loads(GOLDEN.with_name("metrics_document.json").read_text(encoding="utf-8"))


def names(page: bytes) -> set[str]:
    """Return the names of a page's samples."""
    return {
        sample.name
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_the_page_is_the_golden_one():
    page = exposition(DOCUMENT)
    if os.environ.get("GOVERNOR_GOLDEN") == "write":
        GOLDEN.write_bytes(page)
    assert page.decode() == GOLDEN.read_text(encoding="utf-8")


def test_names_follow_the_conventions():
    for family in text_string_to_metric_families(GOLDEN.read_text(encoding="utf-8")):
        assert re.fullmatch(r"governor_[a-z0-9_]+", family.name)
        assert family.documentation.endswith("."), family.name
        assert not family.name.endswith(("_ms", "_percent", "_mib")), "base units only"
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_what_is_not_known_has_no_sample_and_is_not_zero():
    document = copy.deepcopy(DOCUMENT)
    document["models"][0]["attainment"] = None
    document["gpu"] = []
    page = exposition(document)
    assert "governor_model_attainment_ratio" in names(exposition(DOCUMENT))
    assert "governor_model_attainment_ratio" not in names(page)
    assert "governor_gpu_power_watts" not in names(page)


def test_a_gpu_that_is_lost_says_so_though_it_tells_nothing_else():
    gone = GpuReading(3, None, None, error="GPU is lost", lost=True)
    page = exposition({**DOCUMENT, "gpu": json_ready([gone])}).decode()
    assert re.findall(r"^governor_gpu_.*", page, re.MULTILINE) == ['governor_gpu_lost{gpu="3"} 1.0']


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_document_with_parts_missing_or_odd_still_makes_a_page(data):
    document: Any = copy.deepcopy(DOCUMENT)
    histograms = document.pop("histograms")  # the daemon's own, whole or absent
    where = document
    while isinstance(where, (dict, list)) and where:
        keys = list(where) if isinstance(where, dict) else range(len(where))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(where[key], (dict, list)) or data.draw(st.booleans()):
            if where is not document["models"]:
                where[key] = data.draw(st.sampled_from([None, 'x\n"\\', [], {}, -1.5, True]))
            break
        where = where[key]
    document.pop(data.draw(st.sampled_from(list(document))), None)
    if data.draw(st.booleans()):
        document["histograms"] = histograms
    assert "governor_build_info" in names(exposition(document))


def test_labels_from_elsewhere_cannot_forge_a_sample():
    document = copy.deepcopy(DOCUMENT)
    document["models"][0]["name"] = 'a"} 1\ngovernor_forged 1\n#'
    assert "governor_forged" not in names(exposition(document))


def test_a_histogram_counts_as_prometheus_does():
    durations = Durations()
    for seconds in (0.0004, 0.003, 0.003, 99.0):
        durations.add(seconds)
    seen = durations.histogram()
    assert dict(seen["buckets"])["0.0005"] == 1
    assert dict(seen["buckets"])["0.005"] == 3
    assert dict(seen["buckets"])["60"] == 3
    assert dict(seen["buckets"])["+Inf"] == 4
    assert seen["sum"] == pytest.approx(99.0064)


# -- the server ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def scrape(port: int, path: str = "/metrics") -> tuple[int, str]:
    url = f"http://127.0.0.1:{port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def listening(server: MetricsServer) -> None:
    for _ in range(200):
        if server.error is None and server.listening:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(server.error)


async def test_the_page_is_served_follows_the_policy_and_ends():
    server, (first, second) = MetricsServer(lambda: DOCUMENT), (free_port(), free_port())
    await server.follow(f"127.0.0.1:{first}")
    await listening(server)
    status, text = await scrape(first)
    assert (status, text) == (200, GOLDEN.read_text(encoding="utf-8"))
    assert (await scrape(first, "/"))[0] == 404
    await server.follow(f"127.0.0.1:{second}")
    await listening(server)
    assert (await scrape(second))[0] == 200
    for port in (first, second):
        await server.follow(None)
        with pytest.raises(aiohttp.ClientError):
            await scrape(port)


async def test_an_address_that_is_taken_is_told_and_tried_again(monkeypatch):
    monkeypatch.setattr("controller.interfaces.prometheus._RETRY_S", 0.05)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        server = MetricsServer(lambda: DOCUMENT)
        await server.follow(f"127.0.0.1:{port}")
        for _ in range(100):
            if server.error is not None:
                break
            await asyncio.sleep(0.02)
        assert f"cannot listen at 127.0.0.1:{port}" in (server.error or "")
    await listening(server)
    assert (await scrape(port))[0] == 200
    await server.stop()
