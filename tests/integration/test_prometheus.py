"""The real Prometheus: its tool checks page and rules, and it scrapes the page."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path

import aiohttp
import pytest
import yaml

from controller.interfaces.prometheus import MetricsServer

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
GOLDEN = ROOT / "tests" / "unit" / "golden"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")

pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(
        PROMTOOL is None or PROMETHEUS is None, reason="prometheus is not installed"
    ),
]


def promtool(*arguments: str, text: str | None = None) -> None:
    done = subprocess.run(
        [str(PROMTOOL), *arguments], input=text, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid_and_pass_their_tests():
    promtool("check", "rules", str(DEPLOY / "governor-rules.yml"))
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))
    promtool("test", "rules", str(DEPLOY / "governor-rules-test.yml"))


def test_the_page_is_as_prometheus_wants_it():
    promtool("check", "metrics", text=(GOLDEN / "metrics.txt").read_text(encoding="utf-8"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def test_a_prometheus_scrapes_the_page_and_fires_an_alert(tmp_path):
    document = json.loads((GOLDEN / "metrics_document.json").read_text(encoding="utf-8"))
    document["journal"] = {"up": False, "error": "disk full"}
    server, page, own = MetricsServer(lambda: document), free_port(), free_port()
    await server.follow(f"127.0.0.1:{page}")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{page}"]
    rules = (
        (DEPLOY / "governor-rules.yml").read_text(encoding="utf-8").replace("for: 10m", "for: 1s")
    )
    (tmp_path / "governor-rules.yml").write_text(rules, encoding="utf-8")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it is started once, and quickly
            [
                str(PROMETHEUS),
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{own}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        assert await value(own, 'up{job="triton-governor"}') == 1.0
        assert await value(own, 'governor_model_objective_seconds{model="qa"}') == 0.06
        query = "histogram_quantile(0.5, governor_switch_duration_seconds_bucket)"
        assert 0.001 < await value(own, query) < 0.01
        assert (
            await value(own, 'ALERTS{alertname="GovernorJournalDown",alertstate="firing"}') == 1.0
        )
        # Of an alert whose series is there and well, none fires.
        assert await vector(own, 'ALERTS{alertname="GovernorTritonDown"}') == []
    except BaseException:
        print((tmp_path / "log").read_text(encoding="utf-8", errors="replace"))  # noqa: T201
        raise
    finally:
        process.terminate()
        process.wait(20)
        await server.stop()


async def vector(port: int, query: str) -> list[dict]:
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        found: list[dict] = (await answer.json())["data"]["result"]
        return found


async def value(port: int, query: str) -> float:
    """Wait until a query has one answer, and return it."""
    ends_s = time.monotonic() + 30.0
    while True:
        try:
            found = await vector(port, query)
        except (aiohttp.ClientError, KeyError):
            found = []
        if found:
            return float(found[0]["value"][1])
        assert time.monotonic() < ends_s, query
        await asyncio.sleep(0.2)
