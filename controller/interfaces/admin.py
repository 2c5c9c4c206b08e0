"""The admin socket: HTTP with JSON on a Unix socket, whose permissions are the login.

Owns the socket's file and the translation between HTTP and `Control`. It must not decide
anything, and nothing a client sends may bring it down or make it wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from controller.interfaces.control import Caller, CommandResult, Control
from controller.interfaces.paths import ensure_private
from controller.interfaces.requests import (
    DEFAULT_LIMIT,
    FOR_S,
    LIMIT,
    NAME,
    REQUIRED_NAME,
    WHY,
    Field,
    RequestError,
    check_fields,
    parse_body,
)
from controller.interfaces.views import health_view, json_ready
from controller.telemetry.gate import Gate

_LOG = logging.getLogger(__name__)
# A client's malformed HTTP is answered, not logged with a traceback: it could fill the log.
_QUIET = logging.getLogger(f"{__name__}.http")
_QUIET.setLevel(logging.CRITICAL)

_MAX_BODY_BYTES = 16 * 1024
_MAX_LINE_BYTES = 2048
_MAX_FIELD_BYTES = 4096
_MAX_CONNECTIONS = 64
_BODY_TIMEOUT_S = 5.0
_COMMAND_TIMEOUT_S = 10.0
_NAME_TIMEOUT_S = 1.0  # a user database on the network may hang
_NAME_KEPT_S = 60.0
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid, as SO_PEERCRED gives them

Command = Callable[[dict[str, Any], Caller], Awaitable[CommandResult]]


class AdminSocketError(OSError):
    """The socket cannot be opened; the text says why and what to do."""


class AdminServer:
    """Serves the admin API of one `Control` on one Unix socket."""

    def __init__(self, control: Control, path: Path) -> None:
        self.path = path
        self._control = control
        self._runner: web.AppRunner | None = None
        self._server: asyncio.AbstractServer | None = None
        self._inode: int | None = None
        self._names: dict[int, tuple[str, float]] = {}

    async def start(self) -> None:
        """Listen. Raises AdminSocketError when another daemon does, or the folder does not suit."""
        listener = self._bind()
        app = self._application()
        gate = Gate(app, most=_MAX_CONNECTIONS)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_QUIET,
            handle_signals=False,
            shutdown_timeout=1.0,
            keepalive_timeout=15.0,
            lingering_time=1.0,
            auto_decompress=False,  # nobody compresses 100 bytes; bombs are not unpacked
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_FIELD_BYTES,
        )
        await runner.setup()
        self._runner = runner
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: gate.admit(runner), sock=listener, backlog=_MAX_CONNECTIONS
        )

    async def stop(self) -> None:
        """Stop listening, end what is open, and remove the socket if it is still ours."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()

    def _bind(self) -> socket.socket:
        try:
            ensure_private(self.path.parent)
            self._clear_the_way()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # Linux gives the file the descriptor's mode: nobody else may connect in between.
                os.fchmod(listener.fileno(), 0o600)
                listener.bind(str(self.path))
                self.path.chmod(0o660)
                self._inode = self.path.lstat().st_ino
            except BaseException:
                listener.close()
                raise
        except AdminSocketError:
            raise
        except OSError as error:
            raise AdminSocketError(f"cannot listen on {self.path}: {error}") from error
        listener.setblocking(False)
        return listener

    def _clear_the_way(self) -> None:
        """Remove the socket of a daemon that is gone; refuse that of one that is there."""
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise AdminSocketError(f"{self.path} is there and is not a socket; move it away")
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.settimeout(1.0)
        try:
            probe.connect(str(self.path))
        except (ConnectionRefusedError, FileNotFoundError):
            self.path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise AdminSocketError(
                f"cannot tell whether a governor listens on {self.path}: {error}"
            ) from error
        else:
            pid = peer_credentials(probe)[0]
        finally:
            probe.close()
        raise AdminSocketError(
            f"another governor (pid {pid}) listens on {self.path}; stop it, or give this one"
            " another socket"
        )

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[_answer_in_json], client_max_size=_MAX_BODY_BYTES)
        control = self._control
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/explain", self._explain)
        app.router.add_get("/v1/history", self._history)
        app.router.add_get("/v1/health", self._health)
        app.router.add_get("/v1/alias", self._alias)
        model_only = {"model": REQUIRED_NAME}
        commands: dict[str, tuple[Mapping[str, Field], Command]] = {
            "pin": (
                {"model": REQUIRED_NAME, "variant": REQUIRED_NAME, "for_s": FOR_S, "why": WHY},
                lambda given, who: control.pin(
                    given["model"],
                    given["variant"],
                    for_s=given["for_s"],
                    why=given["why"],
                    who=who,
                ),
            ),
            "unpin": (model_only, lambda given, who: control.unpin(given["model"], who=who)),
            "pause": (
                {"model": NAME, "for_s": FOR_S, "why": WHY},
                lambda given, who: control.pause(
                    given["model"], for_s=given["for_s"], why=given["why"], who=who
                ),
            ),
            "release": (
                {"model": NAME, "on": NAME, "why": WHY},
                lambda given, who: control.release(
                    given["model"], on=given["on"], why=given["why"], who=who
                ),
            ),
            "adopt": (
                {"model": NAME},
                lambda given, who: control.adopt(given["model"], who=who),
            ),
            "resume": (
                {"model": NAME},
                lambda given, who: control.resume(given["model"], who=who),
            ),
        }
        for name, (fields, command) in commands.items():
            app.router.add_post(f"/v1/{name}", self._handler(fields, command))
        return app

    async def _status(self, request: web.Request) -> web.Response:
        _query(request, {})
        return _json(self._control.status())

    async def _health(self, request: web.Request) -> web.Response:
        _query(request, {})
        return _json(health_view(self._control.status()))

    async def _explain(self, request: web.Request) -> web.Response:
        given = _query(request, {"model": NAME})
        try:
            return _json(self._control.explain(given["model"]))
        except KeyError:
            return _unknown_model(given["model"])

    async def _alias(self, request: web.Request) -> web.Response:
        given = _query(request, {"model": REQUIRED_NAME})
        try:
            return _json(self._control.alias(given["model"]))
        except KeyError:
            return _unknown_model(given["model"])

    async def _history(self, request: web.Request) -> web.Response:
        given = _query(request, {"model": NAME, "limit": LIMIT})
        try:
            actions = self._control.history(given["model"], given["limit"] or DEFAULT_LIMIT)
        except KeyError:
            return _unknown_model(given["model"])
        return _json({"actions": actions})

    def _handler(
        self, fields: Mapping[str, Field], command: Command
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            _query(request, {})
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body = await request.read()
            given = check_fields(parse_body(body), fields)
            who = await self._who(request)
            async with asyncio.timeout(_COMMAND_TIMEOUT_S):
                result = await command(given, who)
            if result.ok:
                return _json({"message": result.message})
            return _json({"error": result.message}, status=409)

        return handle

    async def _who(self, request: web.Request) -> Caller:
        """Return who is at the other end, as the kernel vouches for it.

        That is who connected: the process may have handed the connection on, or be gone.
        """
        peer = request.get_extra_info("socket")
        if peer is None:
            return Caller("unknown", "socket")
        pid, uid, gid = peer_credentials(peer)
        return Caller(await self._name(uid), "socket", uid, gid, pid)

    async def _name(self, uid: int) -> str:
        known = self._names.get(uid)
        if known is not None and time.monotonic() - known[1] < _NAME_KEPT_S:
            return known[0]
        try:
            async with asyncio.timeout(_NAME_TIMEOUT_S):
                name = (await asyncio.to_thread(pwd.getpwuid, uid)).pw_name
        except (KeyError, TimeoutError, OSError):
            name = f"uid {uid}"
        self._names[uid] = (name, time.monotonic())
        return name


def peer_credentials(peer: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the process at the other end of a Unix socket."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


@web.middleware
async def _answer_in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every refusal and every accident into `{"error": ...}`."""
    try:
        return await handler(request)
    except RequestError as error:
        return _json({"error": str(error)}, status=400)
    except web.HTTPException as error:
        message = {
            404: f"there is nothing at {request.path!r}",
            405: f"{request.method} is not possible at {request.path!r}",
            413: f"the body is larger than {_MAX_BODY_BYTES} bytes",
        }.get(error.status, error.reason)
        return _json({"error": message}, status=error.status)
    except TimeoutError:
        return _json({"error": "the request took too long"}, status=408)
    except (web.RequestPayloadError, ConnectionError, EOFError) as error:
        return _json({"error": f"the body did not arrive: {error}"}, status=400)
    except Exception:  # noqa: BLE001 - the daemon goes on whatever a question met
        _LOG.exception("a bug: %s %s failed", request.method, request.path)
        return _json({"error": "internal error; the daemon's log has the details"}, status=500)


def _query(request: web.Request, fields: Mapping[str, Field]) -> dict[str, Any]:
    given = dict(request.query)
    if len(given) != len(request.query):
        raise RequestError("the query has a key twice")
    return check_fields(given, fields)


def _unknown_model(model: str | None) -> web.Response:
    return _json({"error": f"the policy has no model {model!r}"}, status=404)


def _json(value: Any, status: int = 200) -> web.Response:
    body = json.dumps(json_ready(value), separators=(",", ":"), allow_nan=False)
    return web.Response(text=body, status=status, content_type="application/json")
