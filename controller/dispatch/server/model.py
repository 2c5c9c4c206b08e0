"""A dispatcher inside Triton: one queue for all variants of a model.

Requests are taken over at once and answered later, through their response senders, so that the
queue is here, where its length and ages are known. Two threads in turn take batches from it and
ask a variant (business logic scripting), a third one answers. A request with the control tensor is
the governor's: signed, it brings a plan, and is answered with what happened since.

This file is for the Python backend; the package `dispatch` lies beside it.
"""

import json
import os
import queue
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils
from dispatch.late_binding import Dispatcher
from dispatch.plan import Plan
from dispatch.signed import SignatureError, unseal

CONTROL, REPORT = "GOVERNOR_CONTROL", "GOVERNOR_REPORT"
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_DRAIN_S = 10.0
_WORKERS = 2  # one batch is executed, and the next one on its way


class TritonPythonModel:
    """What the Python backend calls."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        value = lambda name: config["parameters"][name]["string_value"]
        self.inputs = [one["name"] for one in config["input"] if one["name"] != CONTROL]
        self.outputs = [one["name"] for one in config["output"] if one["name"] != REPORT]
        self.most_rows = int(value("client_max_batch"))
        folder = os.path.join(args["model_repository"], args["model_version"])
        with open(os.path.join(folder, "key"), "rb") as file:
            self.key = file.read().strip()
        self.serial = self.plan_serial = 0
        self.started_s = time.monotonic()
        # Until the governor says more: one variant, of which nothing is known.
        first = Plan((value("first"),), (0.0,), ((1e-3,) * self.most_rows,), (1.0,), 1.0)
        self.dispatcher = Dispatcher(first)
        # The batches under way, by thread.
        self.running = {}
        self.changed = threading.Condition()
        self.ending = False
        self.broken = None  # why it chooses no more; the governor leaves it then
        # Answers go out beside the next batch: the device should not wait for them.
        self.answers = queue.SimpleQueue()
        self.threads = []
        for run in (*[self.work] * _WORKERS, self.respond):
            self.start(run)

    def start(self, run):
        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def execute(self, requests):
        now_s = time.monotonic()
        for request in requests:
            sender = request.get_response_sender()
            try:
                control = pb_utils.get_input_tensor_by_name(request, CONTROL)
                if control is not None:
                    sender.send(self.obey(control.as_numpy().ravel()[0]), flags=_FINAL)
                    continue
                self.take_in(now_s, request, sender)
            except Exception as error:  # whatever one request has: the others go on
                fail(sender, f"{type(error).__name__}: {error}")
        return None

    def take_in(self, now_s, request, sender):
        tensors = {}
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensors[name] = np.array(tensor.as_numpy())  # its memory ends with the request
        rows = len(next(iter(tensors.values())))
        if not 1 <= rows <= self.most_rows:
            fail(sender, f"a request may have 1 to {self.most_rows} rows, this one has {rows}")
            return
        shapes = tuple((name, value.dtype.str, value.shape[1:]) for name, value in tensors.items())
        kind = (shapes, request.parameters())
        with self.changed:
            broken = self.broken
            waits = broken is None and self.dispatcher.come(now_s, rows, kind, (tensors, sender))
            self.changed.notify()
        if broken is not None:  # nobody would take it
            fail(sender, broken)
        elif not waits:
            refuse(sender, "Exceeds maximum queue size")

    # -- batches -------------------------------------------------------------------------------

    def work(self):
        """Take batches; if that fails, say so to the governor, who leads clients elsewhere."""
        try:
            self.take_batches()
        except SilentError:
            return  # another thread works in the place of this one
        except Exception as error:
            self.fails(error)
            raise

    def fails(self, error):
        self.broken = f"its choice failed: {type(error).__name__}: {error}"
        pb_utils.Logger.log_error(self.broken)
        with self.changed:
            left = self.dispatcher.send_away()
        for request in left:
            fail(request.payload[1], self.broken)

    def take_batches(self):
        """Take batches, one at a time, and the next one just before one ends."""
        while True:
            with self.changed:
                overdue, batch = [], None
                while not overdue and batch is None:
                    now_s = time.monotonic()
                    overdue = self.dispatcher.overdue(now_s)
                    wait_s = self.ahead_s(now_s)
                    if wait_s is not None and wait_s <= 0.0:
                        batch = self.dispatcher.take(now_s, next(iter(self.running.values()), None))
                    if batch is None and not overdue:
                        if self.ending and not self.dispatcher.waiting:
                            self.answers.put(None)
                            return
                        self.changed.wait(self.sleeps_s(now_s, wait_s))
                if batch is not None:
                    self.running[threading.get_ident()] = batch
            for request in overdue:
                refuse(request.payload[1], "Request timeout expired")
            if batch is None:
                continue
            self.serve(batch)
            with self.changed:
                if self.running.pop(threading.get_ident(), None) is None:
                    raise SilentError
                self.changed.notify_all()

    def sleeps_s(self, now_s, wait_s):
        """Return in how many seconds there is something to do; None: when something has changed."""
        waits = (wait_s if self.dispatcher.waiting else None, self.dispatcher.patient_s(now_s))
        return min((one for one in waits if one is not None), default=None)

    def ahead_s(self, now_s):
        """Return in how many seconds the next batch may be taken; None: when one has ended."""
        if len(self.running) > 1:
            return None
        sends_s = (self.dispatcher.sends_s(batch) for batch in self.running.values())
        return max(sends_s, default=now_s) - now_s

    def serve(self, batch):
        """Have a batch answered, whatever comes: a thread that dies would leave all that come."""
        try:
            self.have_answered(batch)
        except SilentError:
            raise
        except Exception as error:
            with self.changed:
                batch = self.running[threading.get_ident()]  # perhaps with another variant
            self.failed(batch, f"{type(error).__name__}: {error}")

    def have_answered(self, batch):
        parameters = json.loads(batch.requests[0].kind[1] or "{}")
        answer = self.ask(batch.name, joined(batch), parameters)
        if answer.has_error():
            batch, answer = self.elsewhere(batch, answer, parameters)
        if answer.has_error() and len(batch.requests) > 1:
            self.one_by_one(batch, parameters)
        else:
            self.done(batch, answer)

    def elsewhere(self, batch, answer, parameters):
        """Ask others in the place of a variant that could not be asked, or failed.

        Where a second one fails, too, it is not the variant.
        """
        first = None
        while answer.has_error():
            name, message = batch.name, answer.error().message()
            away = is_away(name, message)
            with self.changed:
                other = self.dispatcher.again(batch, message) if away or first is None else None
                if other is not None:
                    batch = other._replace(sent_s=time.monotonic())
                    self.running[threading.get_ident()] = batch
                elif not away:
                    self.dispatcher.pardon(name)
                    if first is not None:
                        self.dispatcher.pardon(first)
            if other is None:
                break
            first = first if away else name
            answer = self.ask(batch.name, joined(batch), parameters)
        return batch, answer

    def one_by_one(self, batch, parameters):
        """Ask for each request alone: what one of them has is not the others' fault."""
        with self.changed:
            parts = self.dispatcher.apart(batch)
        while parts:
            one = parts.pop(0)._replace(sent_s=time.monotonic())
            with self.changed:
                self.running[threading.get_ident()] = one
            try:
                self.done(one, self.ask(one.name, joined(one), parameters))
            except SilentError:
                for left in parts:
                    self.failed(left, f"{left.name} does not answer")
                raise
            except Exception as error:
                self.failed(one, f"{type(error).__name__}: {error}")

    def failed(self, batch, message):
        with self.changed:
            self.dispatcher.ended(batch, time.monotonic(), failed=True)
        self.answers.put((batch, None, pb_utils.TritonError(message)))

    def done(self, batch, answer):
        problem = answer.error() if answer.has_error() else None
        with self.changed:
            try:
                self.dispatcher.ended(batch, time.monotonic(), failed=problem is not None)
            except Exception as error:  # they have their answer all the same
                self.fails(error)
        if problem is not None:
            problem = pb_utils.TritonError(problem.message(), problem.code())
        self.answers.put((batch, answer, problem))

    def respond(self):
        working = _WORKERS
        while working:
            answered = self.answers.get()
            if answered is None:
                working -= 1
                continue
            batch, answer, problem = answered
            try:
                if problem is None:
                    self.share_out(batch, answer)
            except Exception as error:
                problem = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            if problem is not None:
                for request in batch.requests:
                    send(request.payload[1], pb_utils.InferenceResponse(error=problem))

    def share_out(self, batch, answer):
        tensors = {
            name: pb_utils.get_output_tensor_by_name(answer, name).as_numpy()
            for name in self.outputs
        }
        at = 0
        for request in batch.requests:
            own = slice(at, at := at + request.rows)
            response = pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, value[own]) for name, value in tensors.items()]
            )
            send(request.payload[1], response)

    def ask(self, name, inputs, parameters):
        request = pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=self.outputs,
            inputs=inputs,
            parameters=parameters,
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        answer = request.exec()
        with self.changed:
            if threading.get_ident() not in self.running:
                raise SilentError
        return answer

    def leave_silent(self):
        """Give up batches that are not answered at all, and have others take the next ones."""
        now_s, found = time.monotonic(), []
        with self.changed:
            for thread, batch in list(self.running.items()):
                if self.dispatcher.gives_up(batch, now_s):
                    found.append(batch)
                    del self.running[thread]
                    # Nobody waits for it when this model is unloaded.
                    self.threads = [one for one in self.threads if one.ident != thread]
                    self.dispatcher.ended(batch, now_s, failed=True)
                    self.start(self.work)
            self.changed.notify_all()
        for batch in found:
            pb_utils.Logger.log_error(f"{batch.name} does not answer: it is left alone")
            for request in batch.requests:
                fail(request.payload[1], f"{batch.name} does not answer")

    # -- the governor --------------------------------------------------------------------------

    def obey(self, message):
        self.leave_silent()
        if self.broken is not None:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(self.broken))
        try:
            body = unseal(self.key, bytes(message), self.serial)
            plan = Plan.read(body["plan"]) if body.get("plan") is not None else None
        except (SignatureError, ValueError, KeyError, TypeError) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"refused: {error}"))
        with self.changed:
            self.serial = body["serial"]
            if plan is not None:
                self.dispatcher.set_plan(plan)
                self.plan_serial = self.serial
            report = self.report()
        text = np.array([[json.dumps(report).encode()]], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor(REPORT, text)])

    def report(self):
        own = self.dispatcher
        p50_s, p99_s = own.quantiles_s(0.5, 0.99)
        return {
            "serial": self.serial,
            "plan_serial": self.plan_serial,
            "uptime_s": time.monotonic() - self.started_s,
            "plan": list(own.plan.names),
            "arrived": own.arrived,
            "completed": own.completed,
            "failed": own.failed,
            "refused": own.refused,
            "in_time": own.in_time,
            "waiting": own.waiting,
            "running": len(self.running),
            "served": own.served,
            "slowdown": own.slowdown,
            "p50_s": p50_s,
            "p99_s": p99_s,
            "told_s": own.promise.last_s,
            "told_kept": own.promise.coverage,
            "untold": own.untold,
            "shunned": own.shunned(time.monotonic()),
        }

    def finalize(self):
        """Answer all that wait: Triton unloads a model when its requests have ended."""
        with self.changed:
            self.ending = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(_DRAIN_S)


class SilentError(Exception):
    """The batch of this thread was given up meanwhile."""


def joined(batch):
    """Return the inputs of all its requests as tensors of one."""
    parts = [request.payload[0] for request in batch.requests]
    return [
        pb_utils.Tensor(name, np.concatenate([part[name] for part in parts])) for name in parts[0]
    ]


def is_away(name, message):
    """Return whether a variant could not be asked at all, by Triton's words, which name it."""
    lowered = message.lower()
    away = any(words in lowered for words in ("not ready", "not found", "unknown model"))
    return away and name in message


def refuse(sender, message):
    """Answer as Triton does where one of its queues is full, in its words."""
    error = pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE)
    send(sender, pb_utils.InferenceResponse(error=error))


def fail(sender, message):
    """Answer with an error."""
    send(sender, pb_utils.InferenceResponse(error=pb_utils.TritonError(message)))


def send(sender, response):
    """Answer, if the client is still there."""
    try:
        sender.send(response, flags=_FINAL)
    except Exception as error:
        pb_utils.Logger.log_warn(f"an answer could not be sent: {error}")
