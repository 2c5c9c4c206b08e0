"""What `governor top` asks the daemon, beside the screen: a daemon that hangs must not stop keys.

Owns the thread that asks and the answers that nobody has taken yet. It must not draw.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from controller.cli.client import DaemonDownError, RefusedError, ask
from controller.cli.table import Json, list_of

_ACTIONS_OF_A_MODEL: Final = 10
_ACTIONS_OF_ALL: Final = 200


@dataclass(frozen=True, slots=True)
class Question:
    """What the screen needs beside the status."""

    model: str | None = None  # whose actions
    explain: bool = False  # and the newest decision of it
    everything: bool = False  # the actions of all models instead


@dataclass(frozen=True, slots=True)
class Shown:
    """What was answered last, and what has been wrong since."""

    status: Json | None = None
    answered_s: float | None = None  # when the status came, monotonic
    question: Question = Question()  # what `actions` and `explanation` are about
    actions: tuple[Json, ...] = ()
    explanation: Json | None = None
    error: str | None = None  # why there is nothing newer

    def after(self, answer: Shown) -> Shown:
        """Return what is shown after an answer: a failed one leaves the old, and says why."""
        return replace(self, error=answer.error) if answer.status is None else answer

    def age_s(self, now_s: float) -> float | None:
        """Return how old what is shown is; None: there is nothing."""
        return None if self.answered_s is None else max(now_s - self.answered_s, 0.0)


class Feed:
    """Asks one question at a time, in a thread that ends with the process."""

    def __init__(self, socket_path: Path, wake: Callable[[], None]) -> None:
        self._path = socket_path
        self._wake = wake
        self._questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Shown] = queue.SimpleQueue()
        self.asking = False

    def start(self) -> None:
        """Start the thread. A daemon thread: a quit does not wait for an answer."""
        threading.Thread(target=self._run, name="feed", daemon=True).start()

    def ask(self, question: Question) -> None:
        """Ask, unless an answer is still out."""
        if not self.asking:
            self.asking = True
            self._questions.put(question)

    def take(self) -> Shown | None:
        """Return the answer if it has come."""
        try:
            answer = self._answers.get_nowait()
        except queue.Empty:
            return None
        self.asking = False
        return answer

    def _run(self) -> None:
        while True:
            question = self._questions.get()
            self._answers.put(answered(self._path, question))
            self._wake()


def answered(socket_path: Path, question: Question) -> Shown:
    """Return the daemon's answers; whatever goes wrong is a sentence in it."""
    try:
        status = ask(socket_path, "GET", "/v1/status")
        answered_s = time.monotonic()
        actions, explanation = _besides(socket_path, question)
    except (DaemonDownError, RefusedError) as error:
        return Shown(error=str(error))
    except Exception as error:  # noqa: BLE001 - the view must outlive whatever is answered
        return Shown(error=f"the answer of {socket_path} cannot be read: {error!r:.200}")
    return Shown(status, answered_s, question, tuple(actions), explanation)


def _besides(socket_path: Path, question: Question) -> tuple[list[Json], Json | None]:
    try:
        if question.everything:
            answer = ask(socket_path, "GET", f"/v1/history?limit={_ACTIONS_OF_ALL}")
            return list_of(answer, "actions"), None
        if question.model is None:
            return [], None
        name = quote(question.model, safe="")
        answer = ask(socket_path, "GET", f"/v1/history?limit={_ACTIONS_OF_A_MODEL}&model={name}")
        actions = list_of(answer, "actions")
        if not question.explain:
            return actions, None
        entries = list_of(ask(socket_path, "GET", f"/v1/explain?model={name}"), "models")
    except RefusedError:  # the model has just left the policy
        return [], None
    return actions, entries[0] if entries else None
