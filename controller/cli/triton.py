"""``governor triton``: install, start, stop and look at the embedded Triton.

Owns the command's arguments and its output. It must not import anything heavy before a command
runs, as the start-up time of every other command counts.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controller.embedded.install import Installation

DEFAULT_OTLP_URL = "http://127.0.0.1:4318/v1/traces"
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3
"""As systemd and LSB have it for a status of something that is not running."""
_LAST_PORT = 65535
_MIN_LOAD_S, _MAX_LOAD_S = 10.0, 3600.0


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``triton`` and its commands to the main parser."""
    parser = subparsers.add_parser(
        "triton",
        help="install and run a real Triton on this machine, no container needed",
        description="A real Triton (CPU, loopback only) to try the governor with.",
    )
    commands = parser.add_subparsers(dest="triton_command", required=True, metavar="COMMAND")

    install = commands.add_parser("install", help="download the server, train the sample models")
    install.add_argument(
        "--server-only", action="store_true", help="leave the sample models untrained"
    )
    install.set_defaults(run=_run_install)

    start = commands.add_parser("start", help="run it in the foreground until Ctrl-C")
    start.add_argument(
        "--repository", type=Path, metavar="DIR", help="model repository (default: sample models)"
    )
    start.add_argument(
        "--load", action="append", default=[], metavar="MODEL", help="load at start; repeatable"
    )
    for name, usual in (("grpc", 8001), ("http", 8000), ("metrics", 8002)):
        start.add_argument(
            f"--{name}-port",
            type=_port,
            metavar="PORT",
            help=f"default: {usual}, or a free one where that is in use",
        )
    start.add_argument(
        "--otlp-url",
        default=DEFAULT_OTLP_URL,
        metavar="URL",
        help="where traces are posted; 'none' turns them off (default: %(default)s)",
    )
    start.set_defaults(run=_run_start)

    load = commands.add_parser(
        "load",
        help="send calm and bursts to the sample models, to see a governor work",
        description="Sends requests for the sample models to the embedded Triton that runs: calm, "
        "then bursts that its best variant cannot bear. Measures for two seconds what the machine "
        "bears, by asking two variants directly.",
    )
    load.add_argument("model", metavar="MODEL", help="the name that clients call, such as digits")
    load.add_argument(
        "--seconds", type=_seconds, default=30.0, metavar="N", help="how long (default 30)"
    )
    load.add_argument("--seed", type=int, default=1, metavar="N", help="of the load (default 1)")
    load.set_defaults(run=_run_load)

    stop = commands.add_parser("stop", help="stop the one that runs")
    stop.set_defaults(run=_run_stop)

    status = commands.add_parser("status", help="tell whether it runs, and where")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=_run_status)


def _port(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 0 < number <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use a number from 1 to 65535")
    return number


def _seconds(text: str) -> float:
    try:
        value_s = float(text)
    except ValueError:
        value_s = 0.0
    if not _MIN_LOAD_S <= value_s <= _MAX_LOAD_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {_MIN_LOAD_S:g} to {_MAX_LOAD_S:g}"
        )
    return value_s


def _fail(error: object) -> int:
    print(f"governor triton: {error}", file=sys.stderr)
    return EXIT_FAILED


def _progress(message: str, ratio: float | None) -> None:
    share = "     " if ratio is None else f"{ratio:4.0%} "
    print(f"{share}{message}", file=sys.stderr, flush=True)


def _install() -> "Installation":
    from controller.embedded.install import install

    return install(_progress)


def _run_install(args: argparse.Namespace) -> int:
    from controller.embedded.install import InstallError
    from controller.embedded.support import UnsupportedPlatformError

    try:
        installation = _install()
        if not args.server_only:
            from controller.embedded.ladder import ensure_ladder

            ensure_ladder(installation, _progress)
    except (UnsupportedPlatformError, InstallError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted; the next install starts over")
    print(f"Triton {installation.triton_version} is installed in {installation.root}")
    return EXIT_OK


def _run_start(args: argparse.Namespace) -> int:
    from controller.embedded import supervisor
    from controller.embedded.install import InstallError
    from controller.embedded.server import ServerError, ServerOptions
    from controller.embedded.support import UnsupportedPlatformError

    try:
        installation = _install()
        repository = args.repository
        if repository is None:
            from controller.embedded.ladder import ensure_ladder

            repository = ensure_ladder(installation, _progress).repository
        if not repository.is_dir():
            return _fail(f"the model repository {repository} is not a folder")
        ports = supervisor.choose_ports(args.http_port, args.grpc_port, args.metrics_port)
        options = ServerOptions(
            installation=installation,
            repository=repository.absolute(),
            log_file=supervisor.log_file(),
            otlp_url=None if args.otlp_url in {"", "none"} else args.otlp_url,
            load_models=tuple(args.load),
        )
        return supervisor.supervise(options, ports, say=_say, max_restarts=None)
    except (
        UnsupportedPlatformError,
        InstallError,
        ServerError,
        supervisor.AlreadyRunningError,
        OSError,
    ) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return EXIT_OK


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Whoever read our output is gone, which is no reason to take a server down.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - for good


def _run_load(args: argparse.Namespace) -> int:
    from controller.demo import practice
    from controller.demo.load import LoadError
    from controller.embedded import supervisor
    from controller.embedded.install import InstallError
    from controller.embedded.ladder import LadderError, ensure_ladder
    from controller.embedded.server import HOST
    from controller.embedded.support import UnsupportedPlatformError

    try:
        state = supervisor.running()
        if state is None:
            return _fail("no embedded Triton runs; 'governor triton start' starts one")
        ladder = ensure_ladder(_install(), _progress)
        if Path(state.repository) != ladder.repository:
            return _fail(f"the Triton that runs serves {state.repository}, not the sample models")
        address = f"{HOST}:{state.ports.grpc}"
        told = practice.run(ladder, address, args.model, args.seconds, args.seed, _say)
    except (UnsupportedPlatformError, InstallError, LadderError, LoadError, OSError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail("interrupted")
    by = ", ".join(f"{name} {count}" for name, count in told.answers.items())
    _say(f"{told.requests} requests, {told.failed} failed, {told.late} late; answered by {by}")
    return EXIT_OK


def _run_stop(_args: argparse.Namespace) -> int:
    from controller.embedded import supervisor
    from controller.embedded.server import ServerError

    try:
        stopped = supervisor.stop_running()
    except (ServerError, OSError) as error:
        return _fail(error)
    print("stopped" if stopped else "no embedded Triton runs")
    return EXIT_OK


def _run_status(args: argparse.Namespace) -> int:
    from controller.embedded import supervisor
    from controller.embedded.server import HOST, is_ready

    try:
        state = supervisor.running()
    except OSError as error:
        return _fail(error)
    ready = state is not None and state.server_pid is not None and is_ready(state.ports)
    report: dict[str, Any] = {"running": state is not None, "ready": ready}
    if state is not None:
        report |= state.to_json()
    if args.json:
        print(json.dumps(report))
    elif state is None:
        print("no embedded Triton runs; 'governor triton start' starts one")
    else:
        word = "ready" if ready else "not ready"
        print(f"Triton {state.triton_version}: {word}, process {state.server_pid or 'none'}")
        print(f"gRPC        {HOST}:{state.ports.grpc}")
        print(f"HTTP        {HOST}:{state.ports.http}")
        print(f"metrics     http://{HOST}:{state.ports.metrics}/metrics")
        print(f"traces to   {state.otlp_url or 'nowhere'}")
        print(f"repository  {state.repository}")
        print(f"restarts    {state.restarts}")
        print(f"log         {state.log_file}")
    if state is None:
        return EXIT_NOT_RUNNING
    return EXIT_OK if ready else EXIT_FAILED
