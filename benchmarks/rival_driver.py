"""A rival at a real Triton: it reads the metrics page and moves the alias, nothing checked."""

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from tritonclient import grpc as triton

from controller.actuation import alias as alias_config
from controller.telemetry.triton_metrics import PageParser
from controller.twin.rivals import Rival, View


@dataclass(frozen=True)
class Place:
    """The alias that a rival moves, and where."""

    grpc: str
    metrics_url: str
    alias: str
    models: Sequence[str]  # Triton's, of the variants, in the rival's order
    client_max_batch: int
    rows_per_request: float = 1.0


class RivalDriver(threading.Thread):
    """Lets a rival look at the server at every tick and move the alias."""

    def __init__(self, place: Place, rival: Rival, serving: int) -> None:
        super().__init__(daemon=True)
        self._place, self._rival, self._serving = place, rival, serving
        self._ending = threading.Event()
        self.counting = threading.Event()
        self.switches = 0
        self._failed: Exception | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it; raise what ended it before."""
        self._ending.set()
        self.join(30.0)
        if self._failed is not None:
            raise RuntimeError("the rival did not drive to the end") from self._failed

    def run(self) -> None:
        """Look at every tick."""
        try:
            self._drive()
        except Exception as error:  # noqa: BLE001 - told at the end
            self._failed = error

    def _drive(self) -> None:
        place = self._place
        url = urlsplit(place.metrics_url)
        page = http.client.HTTPConnection(url.hostname or "", url.port, timeout=5.0)
        parser, first = PageParser(), None
        with triton.InferenceServerClient(place.grpc) as client:
            configs = self._configs(client)
            due_s = time.monotonic()
            while not self._ending.wait(max(due_s - time.monotonic(), 0.0)):
                due_s += self._rival.tick_s
                page.request("GET", url.path)
                counters = parser.parse(page.getresponse().read())
                own = [counters[model] for model in place.models]
                pending = [
                    round((one.pending_requests or 0) * place.rows_per_request) for one in own
                ]
                done = round(sum(one.completed_rows for one in own))
                first = done if first is None else first
                # A rival's capacities are rows: so is what it is told of the load.
                arrived = done - first + sum(pending)
                view = View(time.monotonic(), self._serving, arrived, pending)
                chosen = self._rival.choose(view)
                if chosen is not None and chosen != self._serving:
                    client.load_model(
                        place.alias, config=configs[chosen], files={"file:1/alias": b"x"}
                    )
                    self._serving = chosen
                    self.switches += self.counting.is_set()
        page.close()

    def _configs(self, client: triton.InferenceServerClient) -> list[str]:
        place = self._place
        return [
            json.dumps(
                alias_config.build(
                    place.alias,
                    [client.get_model_config(model, as_json=True)["config"]],
                    client_max_batch=place.client_max_batch,
                )
            )
            for model in place.models
        ]
