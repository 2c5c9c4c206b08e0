"""The commands that talk to the running daemon, and what they say when it is down.

Owns the client's side of the admin socket, with the standard library only: a shell waits for
every import. It must not decide or compute anything that the daemon could tell.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from controller.cli import output
from controller.cli.arguments import checked

if TYPE_CHECKING:
    from pathlib import Path

    from controller.cli.table import Paper

_TIMEOUT_S: Final = 5.0
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+", re.ASCII)

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


class DaemonDownError(Exception):
    """Nobody answers on the socket; the text says where and why."""


class RefusedError(Exception):
    """The daemon says no; the text is its sentence."""


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add status, explain, history, pin, unpin, pause and resume."""
    common = argparse.ArgumentParser(add_help=False)
    add_socket(common)
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")

    def add(
        name: str,
        run: Callable[[argparse.Namespace], int],
        summary: str,
        *parents: argparse.ArgumentParser,
    ) -> argparse.ArgumentParser:
        parser = subparsers.add_parser(
            name, help=summary, description=summary, parents=[common, *parents], allow_abbrev=False
        )
        parser.set_defaults(run=run)
        return parser

    parser = add("status", _status, "Show what serves and how it does.", as_json)
    parser.add_argument(
        "--watch",
        nargs="?",
        const=1.0,
        type=interval,
        metavar="S",
        help="again every S seconds (1) until Ctrl-C",
    )
    parser = add("explain", _explain, "Tell the newest decision, and why.", as_json)
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser = add("history", _history, "Show what was done to the server.", as_json)
    parser.add_argument("--model", metavar="MODEL")
    parser.add_argument("--limit", type=_limit, default=20, metavar="N", help="rows (20)")
    parser = add("pin", _pin, "Keep a model on one variant.")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("variant", metavar="VARIANT")
    _add_for_and_why(parser)
    parser = add("unpin", _unpin, "Let the governor choose again.")
    parser.add_argument("model", metavar="MODEL")
    parser = add("pause", _pause, "Stop acting; go on observing and recording.")
    parser.add_argument("model", nargs="?", metavar="MODEL")
    _add_for_and_why(parser)
    parser = add("resume", _resume, "End a pause, a hold after a foreign change, or a release.")
    parser.add_argument("model", nargs="?", metavar="MODEL")


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add the option that every command of the daemon has."""
    parser.add_argument(
        "--socket", metavar="PATH", help="the daemon's socket (default: $TRITON_GOVERNOR_SOCKET)"
    )
    parser.add_argument(
        "--instance",
        metavar="NAME",
        help="the server's name where services govern several (default: $TRITON_GOVERNOR_INSTANCE)",
    )


def parse_duration(text: str) -> float:
    """Return seconds from `90s`, `10m`, `1h30m` or `2d`. Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not a duration such as 90s, 10m, 1h30m or 2d")
    pieces = re.findall(r"([\d.]+)([smhd])", text)
    value_s = sum(float(number) * _UNITS_S[unit] for number, unit in pieces)
    if value_s <= 0:
        raise ValueError("a duration must be more than 0")
    return value_s


def ask(
    socket_path: Path,
    method: str,
    url: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any]:
    """Return the daemon's answer. Raises DaemonDownError, RefusedError."""
    import http.client
    import json
    import socket

    class UnixConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(socket_path))

    connection = UnixConnection("governor", timeout=timeout_s)
    data = None if body is None else json.dumps(body).encode()
    try:
        connection.request(method, url, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read(_MAX_ANSWER_BYTES)
    except FileNotFoundError:
        raise DaemonDownError(
            f"no governor runs here: there is no {socket_path}{_others()}"
        ) from None
    except ConnectionRefusedError:
        raise DaemonDownError(f"the governor is gone: nobody listens on {socket_path}") from None
    except PermissionError:
        raise DaemonDownError(
            f"you may not use {socket_path}; join its group, or ask as the user who runs it"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise DaemonDownError(f"the governor on {socket_path} does not answer: {reason}") from None
    finally:
        connection.close()
    try:
        value = json.loads(text)
    except ValueError:
        raise DaemonDownError(f"what listens on {socket_path} is not a governor") from None
    if not isinstance(value, dict):
        raise DaemonDownError(f"what listens on {socket_path} is not a governor")
    if answer.status != http.client.OK:
        raise RefusedError(str(value.get("error") or f"the daemon answered {answer.status}"))
    return value


def _status(args: argparse.Namespace) -> int:
    try:
        path = socket_of(args)
        if args.watch is not None:
            from controller.cli.watch import watch

            return watch(lambda: frame(path, as_json=args.json), args.watch)
        status = ask(path, "GET", "/v1/status")
    except DaemonDownError as error:
        from controller.cli.journals import journal_of
        from controller.cli.offline import show_last_status

        journal = journal_of(args.instance)
        return show_last_status(str(error), journal, as_json=args.json, paper=_paper())
    except RefusedError as error:
        return refused(error)
    if args.json:
        output.print_json(status)
    else:
        from controller.cli.render import render_status

        print(render_status(status, _paper()))
    return output.OK


def frame(path: Path, *, as_json: bool) -> str:
    """Return what `status` shows now, or why nothing."""
    from controller.cli.render import render_status

    try:
        status = ask(path, "GET", "/v1/status")
    except (DaemonDownError, RefusedError) as error:
        status = {"error": str(error)}
        text = f"governor: {error}"
    else:
        text = render_status(status, _paper())
    if as_json:
        import json

        return json.dumps(status, ensure_ascii=False)
    return text


def _explain(args: argparse.Namespace) -> int:
    query = "" if args.model is None else f"?model={_quoted(args.model)}"
    try:
        answer = ask(socket_of(args), "GET", f"/v1/explain{query}")
    except DaemonDownError as error:
        from controller.cli.journals import journal_of
        from controller.cli.offline import show_last_decisions

        journal = journal_of(args.instance)
        return show_last_decisions(
            str(error), journal, args.model, as_json=args.json, paper=_paper()
        )
    except RefusedError as error:
        return refused(error)
    if args.json:
        output.print_json(answer)
        return output.OK
    from controller.cli.render import render_explanation

    paper = _paper()
    print("\n\n".join(render_explanation(entry, paper) for entry in answer.get("models") or ()))
    return output.OK


def _history(args: argparse.Namespace) -> int:
    query = f"?limit={args.limit}"
    if args.model is not None:
        query += f"&model={_quoted(args.model)}"
    try:
        answer = ask(socket_of(args), "GET", f"/v1/history{query}")
    except DaemonDownError as error:
        from controller.cli.journals import journal_of
        from controller.cli.offline import show_old_actions

        journal = journal_of(args.instance)
        return show_old_actions(
            str(error), journal, args.model, args.limit, as_json=args.json, paper=_paper()
        )
    except RefusedError as error:
        return refused(error)
    if args.json:
        output.print_json(answer)
        return output.OK
    from controller.cli.render import local_time, render_history

    print(render_history(answer.get("actions") or (), _paper(), local_time))
    return output.OK


def _pin(args: argparse.Namespace) -> int:
    body = {"model": args.model, "variant": args.variant, "for_s": args.for_s, "why": args.why}
    return _command(args, "pin", body)


def _unpin(args: argparse.Namespace) -> int:
    return _command(args, "unpin", {"model": args.model})


def _pause(args: argparse.Namespace) -> int:
    body = {"model": args.model, "for_s": args.for_s, "why": args.why}
    return _command(args, "pause", body)


def _resume(args: argparse.Namespace) -> int:
    return _command(args, "resume", {"model": args.model})


def _command(args: argparse.Namespace, name: str, body: Mapping[str, Any]) -> int:
    given = {key: value for key, value in body.items() if value is not None}
    try:
        answer = ask(socket_of(args), "POST", f"/v1/{name}", given)
    except DaemonDownError as error:
        output.print_error(str(error), advice="start it with `governor run --policy FILE`")
        return output.UNREACHABLE
    except RefusedError as error:
        return refused(error)
    print(answer.get("message") or "done")
    return output.OK


def refused(error: RefusedError) -> int:
    """Print why a command was refused; return the exit code."""
    from controller.cli.table import clean

    output.print_error(clean(error))
    return output.PROBLEM


def _others() -> str:
    from controller.interfaces.paths import running_instances

    found = running_instances()
    return f"; instances that run: {', '.join(found)} (--instance NAME)" if found else ""


def socket_of(args: argparse.Namespace) -> Path:
    """Return the socket that was named, else that of the instance, else the usual one.

    Raises UsageError: no instance can have such a name.
    """
    from pathlib import Path

    from controller.interfaces.paths import find_socket

    try:
        return Path(args.socket) if args.socket else find_socket(args.instance)
    except ValueError as error:
        raise output.UsageError(str(error)) from None


def _paper() -> Paper:
    return paper_of_stdout(sys.stdout.isatty())


def paper_of_stdout(tty: bool) -> Paper:
    """Return what stdout is: a terminal's width and colours, or plain 80 columns in a pipe."""
    import os
    import shutil

    from controller.cli.table import Paper

    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return Paper(width=max(shutil.get_terminal_size().columns, 40), colour=tty and not plain)


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def _add_for_and_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for",
        dest="for_s",
        type=checked(parse_duration),
        metavar="TIME",
        help="ends by itself after 90s, 10m, 1h, 2d",
    )
    parser.add_argument("--why", metavar="TEXT", help="kept in the journal, shown in status")


def interval(text: str) -> float:
    """Return seconds from a command line. Raises argparse.ArgumentTypeError."""
    try:
        value_s = float(text.removesuffix("s"))
    except ValueError:
        value_s = -1.0
    if not 0.1 <= value_s <= 3600.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0.1 to 3600 seconds")
    return value_s


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to 1000")
    return int(text)
