"""What all arms of the demo share: one Triton with the sample ladder, and how fast it is.

Owns the embedded server while the demo runs, the alias as a person would set it by hand, and the
calibration of the load to the machine.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient import grpc as triton

from controller.actuation import alias as alias_config
from controller.actuation.dispatcher_folder import write
from controller.demo.channel import Channel
from controller.demo.governed import Choice
from controller.demo.load import LoadError, Target, Throughput, measure, write_pages
from controller.demo.records import Records
from controller.demo.scenario import Scale, Shape
from controller.demo.scores import Served
from controller.demo.wire import METHOD, Tensors, message
from controller.embedded.install import Installation
from controller.embedded.ladder import (
    DEVICE_ENV,
    INPUT,
    MAX_BATCH,
    OUTPUT,
    VARIANT_OUTPUT,
    Ladder,
    sample_requests,
)
from controller.embedded.server import HOST, RunningServer, ServerError, start_server
from controller.policy.model import DispatcherPolicy, ModelPolicy, Objective, VariantPolicy

ALIAS = "digits"
OBJECTIVE_MS = 60.0
PERCENTILE = 99.0
_FOLDER_BYTES = 45
_PAGES = 2048
"""So many of the held-out pages are sent; the generator keeps each once per request size."""
_MEASURE_S = 1.0
_MEASURED_TIMES = 3
"""Shared machines differ by a quarter from one second to the next: the middle one counts."""
_DRAIN_TIMEOUT_S = 30.0
_CONTROL_TIMEOUT_S = 30.0
"""A load of an alias takes milliseconds; a server that is still draining takes longer."""


@dataclass(frozen=True, slots=True)
class Models:
    """A ladder of variants of one model, and requests for it."""

    repository: Path
    choices: tuple[Choice, ...]  # in the order of the variants' numbers
    numbers: tuple[int, ...]  # that they answer with
    tensors: Tensors
    max_rows: int
    pages: NDArray[np.uint8] = field(repr=False)  # rows x height x width, held out
    labels: NDArray[np.int64] = field(repr=False)


@dataclass(slots=True)
class Bench:
    """One Triton, its variants, and what the machine makes of them."""

    server: RunningServer
    models: Models
    folder: Path
    pages: Path
    traces: str  # host:port that Triton posts its traces to
    core: int | None = None  # the processor that engines are on; None: wherever there is room
    neighbours: int = 0  # processes of who shares it by night
    alias: str = ALIAS
    objective_ms: float = OBJECTIVE_MS
    percentile: float = PERCENTILE
    served: tuple[Served, ...] = ()  # after `calibrate`

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Return the variants, in an order in which they are numbered."""
        return self.models.choices

    def target(self, model: str | None = None) -> Target:
        """Return whom a load generator asks: the alias, or one variant."""
        return Target(
            self.server.grpc,
            model or self.alias,
            self.models.tensors,
            self.pages,
            self.objective_ms,
        )

    @property
    def best(self) -> Served:
        """Return the variant of the highest quality."""
        return max(self.served, key=lambda variant: variant.quality)

    @property
    def fastest(self) -> Served:
        """Return the variant that gets most through."""
        return max(self.served, key=lambda variant: variant.requests_rps)

    @property
    def scale(self) -> Scale:
        """Return what the load is scaled to."""
        return Scale(self.best.requests_rps, self.fastest.requests_rps)

    def check(self) -> None:
        """Raise ServerError if Triton has ended."""
        if not self.server.is_alive():
            raise ServerError(f"tritonserver ended during the demo:\n{self.server.log_tail()}")

    def calibrate(self, shape: Shape, progress: Callable[[str, float | None], None]) -> None:
        """Measure what each variant gets through: the median of a second here and a second there.

        Raises:
            LoadError: a request failed.
            ServerError: Triton has ended.
        """
        rates_rps: dict[str, list[float]] = {choice.name: [] for choice in self.choices}
        turns = [choice for _ in range(_MEASURED_TIMES) for choice in self.choices]
        for index, choice in enumerate(turns):
            progress(f"measuring {choice.name}", index / len(turns))
            through = self.measure(choice, duration_s=_MEASURE_S, shape=shape, seed=index)
            rates_rps[choice.name].append(through.requests_rps)
        self.served = tuple(
            Served(choice.name, choice.quality, statistics.median(rates_rps[choice.name]))
            for choice in self.choices
        )

    def measure(
        self, choice: Choice, *, duration_s: float, shape: Shape, seed: int, concurrency: int = 8
    ) -> Throughput:
        """Measure once what a variant gets through.

        Raises:
            LoadError: a request failed.
            ServerError: Triton has ended.
        """
        try:
            return measure(
                self.target(choice.model),
                duration_s=duration_s,
                shape=shape,
                concurrency=concurrency,
                seed=seed,
            )
        except LoadError:
            self.check()  # the server's end, with its last words, explains more
            raise

    def renumbered(self, records: Records) -> Records:
        """Return records in which a variant's number is its place in `choices`."""
        places = np.full(max(self.models.numbers) + 1, -1, np.int16)
        places[list(self.models.numbers)] = np.arange(len(self.models.numbers))
        known = (records.variant >= 0) & (records.variant < len(places))
        variant = np.where(known, places[records.variant * known], -1).astype(np.int16)
        return replace(records, variant=variant)

    def point(self, variant: str) -> None:
        """Point the alias at a variant, as a person without a governor would.

        Raises:
            ServerError: Triton refuses.
        """
        chosen = next(choice for choice in self.choices if choice.name == variant)
        try:
            with triton.InferenceServerClient(self.server.grpc) as client:
                config = client.get_model_config(chosen.model, as_json=True)["config"]
                client.load_model(
                    self.alias,
                    config=json.dumps(
                        alias_config.build(
                            self.alias, [config], client_max_batch=self.models.max_rows
                        )
                    ),
                    files={"file:1/alias": b"x"},  # it needs no folder in the repository then
                    client_timeout=_CONTROL_TIMEOUT_S,
                )
        except triton.InferenceServerException as error:
            raise ServerError(f"the alias cannot be pointed at {variant}: {error}") from error

    def write_dispatcher(self) -> tuple[str, Path]:
        """Put a dispatcher of the alias into the repository; return its model and its key's file.

        Raises:
            DispatcherError: the variants do not fit.
        """
        name, key_file = (
            f"{self.alias}_dispatcher",
            self.models.repository.parent / "dispatcher.key",
        )
        variants = tuple(VariantPolicy(one.name, one.model, one.quality) for one in self.choices)
        model = ModelPolicy(
            self.alias,
            Objective(self.objective_ms / 1e3, self.percentile),
            variants,
            client_max_batch=self.models.max_rows,
            dispatcher=DispatcherPolicy(name, str(key_file)),
        )
        for _ in write([model], self.models.repository):
            pass
        return name, key_file

    def drain(self) -> None:
        """Wait until no variant has anything left of an earlier arm.

        Raises:
            ServerError: one does not answer.
        """
        channel = Channel(HOST, self.server.ports.grpc)
        try:
            for choice in self.choices:
                probe = channel.prepare(
                    METHOD,
                    message(choice.model, self.models.tensors, self.models.pages[:1]),
                    _DRAIN_TIMEOUT_S,
                )
                channel.send(probe)
                deadline_s = time.monotonic() + _DRAIN_TIMEOUT_S
                while channel.in_flight:
                    channel.poll(0.1)
                    if time.monotonic() > deadline_s:
                        raise ServerError(f"{choice.model} does not answer")
        finally:
            channel.close()


def sample_models(ladder: Ladder) -> Models:
    """Return the sample ladder as the bench wants it."""
    choices = tuple(Choice(v.name, v.model, v.quality) for v in ladder.variants)
    return models_of(ladder, choices, MAX_BATCH)


def models_of(ladder: Ladder, choices: tuple[Choice, ...], max_rows: int) -> Models:
    """Return some variants of a ladder as the bench wants them. `max_rows`: of a request."""
    samples = sample_requests(ladder)
    made = [variant.model for variant in ladder.variants]
    return Models(
        repository=ladder.repository,
        choices=choices,
        numbers=tuple(made.index(choice.model) for choice in choices),
        tensors=Tensors(INPUT, OUTPUT, VARIANT_OUTPUT),
        max_rows=max_rows,
        pages=samples.pages[:_PAGES],
        labels=samples.labels[:_PAGES].astype(np.int64),
    )


@contextmanager
def open_bench(
    installation: Installation, models: Models, *, core: int | None = None
) -> Iterator[Bench]:
    """Start Triton with every variant loaded; end it and remove its files afterwards.

    `core`: the processor that engines are on.

    Raises:
        ServerError: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="triton-governor-demo-", dir=_short_folder()) as name:
        folder = Path(name)
        pages = folder / "pages.npz"
        write_pages(pages, models.pages, models.labels)
        traces = f"{HOST}:{_free_port()}"
        with start_server(
            installation,
            models.repository,
            log_file=folder / "triton.log",
            otlp_url=f"http://{traces}/v1/traces",
            # Nobody listens on the fixed arms, and posting to nobody ended a server once (signal 11
            # in its tracing); the governor turns tracing on when it is there.
            trace_rate=None,
            load_models=[choice.model for choice in models.choices],
            environment={} if core is None else {DEVICE_ENV: str(core)},
        ) as server:
            yield Bench(server, models, folder, pages, traces, core)


def _short_folder() -> str | None:
    """Return where to put files: the kernel takes 107 bytes as the path of a Unix socket."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= _FOLDER_BYTES else "/tmp"  # noqa: S108 - a fresh folder is made in it


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
