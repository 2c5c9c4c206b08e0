"""`governor release`, `adopt` and `alias`: hand the server back, and take it over again.

Owns what is said of an alias that nobody looks after, and the config that makes it permanent. It
must not change the server: the daemon does.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from controller.cli import output
from controller.cli.client import DaemonDownError, RefusedError, add_socket, ask, socket_of
from controller.cli.table import clean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The last switch is proven before the answer comes.
_TIMEOUT_S: Final = 12.0
_NO_ALIAS: Final = "no alias of that name, and no variant is loaded"
Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def add_parsers(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add release, adopt and alias."""
    summary = "Hand a model back: it stays on a variant, and the governor only looks on."
    parser = subparsers.add_parser(
        "release",
        help=summary,
        description=f"{summary} That survives a restart of the daemon, and ends with `governor"
        " adopt`. No request fails by it.",
        allow_abbrev=False,
    )
    _add_models(parser)
    parser.add_argument(
        "--on", metavar="VARIANT", help="switch there first (default: what serves now)"
    )
    parser.add_argument("--why", metavar="TEXT", help="kept in the journal, shown in status")
    config = parser.add_mutually_exclusive_group()
    config.add_argument(
        "--write-config",
        metavar="DIR",
        help="write the alias into this model repository, so that it survives Triton's restart",
    )
    config.add_argument(
        "--print-config", action="store_true", help="print the alias's config.pbtxt instead"
    )
    parser.set_defaults(run=_release)
    summary = "Show an alias as a config.pbtxt, or write it into a model repository."
    parser = subparsers.add_parser(
        "alias",
        help=summary,
        description=f"{summary} Changes nothing on the server. Where there is no alias yet, it is"
        " made of the variants that are loaded, and points at the best of them.",
        allow_abbrev=False,
    )
    _add_models(parser)
    parser.add_argument("--write-config", metavar="DIR", help="the model repository")
    parser.set_defaults(run=_alias)
    summary = "Act again on a model that was released."
    parser = subparsers.add_parser("adopt", help=summary, description=summary, allow_abbrev=False)
    _add_models(parser)
    parser.set_defaults(run=_adopt)


def _add_models(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", metavar="MODEL")
    which.add_argument("--all", action="store_true", help="every model of the policy")
    add_socket(parser)


def _release(args: argparse.Namespace) -> int:
    body = {"model": args.model, "on": args.on, "why": args.why}
    try:
        path = socket_of(args)
        answer = _post(path, "release", body)
        names = [args.model] if args.model else _names(path)
        views = [ask(path, "GET", f"/v1/alias?model={name}") for name in names]
    except DaemonDownError as error:
        output.print_error(
            str(error),
            advice="without a governor nothing is acted on: Triton serves on as it is",
        )
        return output.UNREACHABLE
    except RefusedError as error:
        output.print_error(clean_lines(error))
        return output.PROBLEM
    said = sys.stderr if args.print_config else sys.stdout
    print(clean_lines(answer.get("message") or "done"), file=said)
    if args.print_config:
        return _print_configs(views)
    if args.write_config:
        return _write_configs(views, args.write_config)
    _tell_of_virtual(views, _daemon_of(args))
    return output.OK


def _alias(args: argparse.Namespace) -> int:
    try:
        path = socket_of(args)
        names = [args.model] if args.model else _names(path)
        views = [ask(path, "GET", f"/v1/alias?model={name}") for name in names]
    except DaemonDownError as error:
        output.print_error(str(error), advice="start it with `governor run --policy FILE`")
        return output.UNREACHABLE
    except RefusedError as error:
        output.print_error(clean(error))
        return output.PROBLEM
    return _write_configs(views, args.write_config) if args.write_config else _print_configs(views)


def _adopt(args: argparse.Namespace) -> int:
    try:
        answer = _post(socket_of(args), "adopt", {"model": args.model})
    except DaemonDownError as error:
        output.print_error(str(error), advice="start it with `governor run --policy FILE`")
        return output.UNREACHABLE
    except RefusedError as error:
        output.print_error(clean(error))
        return output.PROBLEM
    print(clean_lines(answer.get("message") or "done"))
    return output.OK


def _post(path: Path, name: str, body: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in body.items() if value is not None}
    return ask(path, "POST", f"/v1/{name}", given, timeout_s=_TIMEOUT_S)


def _names(path: Path) -> list[str]:
    return [str(model["name"]) for model in ask(path, "GET", "/v1/status").get("models") or ()]


def clean_lines(text: object) -> str:
    """Return text of several lines without anything that a terminal would act on."""
    return "\n".join(map(clean, str(text).splitlines()))


def _daemon_of(args: argparse.Namespace) -> str:
    """Return the options that name the daemon, as they were given, for another command line."""
    import shlex

    given = (("--socket", args.socket), ("--instance", args.instance))
    return "".join(f" {option} {shlex.quote(value)}" for option, value in given if value)


def _tell_of_virtual(views: Sequence[dict[str, Any]], daemon: str) -> None:
    there = [view for view in views if view.get("serving_model") is not None]
    virtual = [clean(view.get("model")) for view in there if view.get("virtual")]
    if not virtual:
        return
    one = len(virtual) == 1
    print(
        f"\n{', '.join(virtual)} {'is a' if one else 'are'} virtual"
        f" {'alias' if one else 'aliases'}: gone when Triton restarts, and nobody will put"
        f" {'it' if one else 'them'} back.\nTo make {'it' if one else 'them'} permanent, before you"
        " restart Triton or remove the governor:\n"
        f"  governor release {virtual[0] if one else '--all'}{clean(daemon)}"
        " --write-config MODEL_REPOSITORY\n"
        "or let clients call the variant by its own name."
    )


def _print_configs(views: Sequence[dict[str, Any]]) -> int:
    for view in views:
        if not view.get("config_pbtxt"):
            output.print_error(f"{clean(view.get('model'))}: {_NO_ALIAS}")
            return output.PROBLEM
        if len(views) > 1:
            print(f"# {clean(view.get('model'))}/config.pbtxt")
        print(clean_lines(view["config_pbtxt"]))
    return output.OK


def _write_configs(views: Sequence[dict[str, Any]], folder: str) -> int:
    from pathlib import Path

    code = output.OK
    root = Path(folder)
    if not root.is_dir():
        output.print_error(f"{root} is no folder: nothing was written")
        return output.PROBLEM
    written = []
    for view in views:
        name, config = str(view.get("model")), view.get("config_pbtxt")
        problem = None if config else _NO_ALIAS
        if config:
            problem = _write(root / name, str(config))
        if problem is not None:
            output.print_error(f"{clean(name)}: not written: {clean(problem)}")
            code = output.PROBLEM
        else:
            written.append(name)
    if written:
        loads = " ".join(f"--load-model={clean(name)}" for name in written)
        print(
            f"\nwritten: {', '.join(str(root / name / 'config.pbtxt') for name in written)}\n"
            "At its next start Triton serves this without a governor, if it is told to load it:\n"
            f"  {loads}\n"
            "Its variant is loaded with it. To govern it again, say `alias: repository` in the"
            " policy."
        )
    return code


def _write(folder: Path, config: str) -> str | None:
    """Write a repository alias; return why not. What is there is never overwritten."""
    file = folder / "config.pbtxt"
    try:
        if file.exists():
            if file.read_text(encoding="utf-8") == config:
                return None
            return f"{file} is there already and says something else; look at it, move it away"
        # Triton wants a version, and has nothing to read in that of an ensemble.
        (folder / "1").mkdir(parents=True, exist_ok=True)
        file.write_text(config, encoding="utf-8")
    except OSError as error:
        return str(error)
    return None
