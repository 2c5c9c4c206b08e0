"""`governor completion`: what a shell needs to complete the command line.

Owns the scripts, which are made from the parsers themselves, and the names that they ask for
while somebody types. It must not import another subcommand or a library before it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Final

from controller.cli import output
from controller.cli.client import add_socket

SHELLS: Final = ("bash", "zsh", "fish")
_NAMES: Final = ("models", "variants")
_TIMEOUT_S: Final = 0.5
"""Somebody waits for it in the middle of a line."""

_FILES: Final = frozenset({"FILE", "YAML", "CSV", "POLICY", "PATH", "OLD", "NEW"})
_FOLDERS: Final = frozenset({"DIR", "FOLDER"})

# How each shell asks for names while a line is typed. The word before a variant is offered as its
# model; where it is none, the variants of every model are told. The daemon is the one that the line
# names so far, as --instance NAME: what --instance=NAME is, bash and zsh do not see.
_FUNCTIONS: Final[Mapping[str, str]] = {
    "bash": """\
_governor_names() {
  local -a which=("$@")
  local -i at
  for ((at = 1; at < COMP_CWORD - 1; at++)); do
    case "${COMP_WORDS[at]}" in
      --instance|--socket)
        which+=("${COMP_WORDS[at]}=${COMP_WORDS[at+1]}") ;;
    esac
  done
  governor completion "${which[@]}" 2>/dev/null
}
_governor_models() {
  compgen -W "$(_governor_names models)" -- "$1"
}
_governor_variants() {
  local before="${COMP_WORDS[COMP_CWORD-1]}"
  compgen -W "$(_governor_names variants "--model=$before")" -- "$1"
}
""",
    "zsh": """\
_governor_names() {
  local -a which=("$@")
  local -i at
  for ((at = 1; at < CURRENT; at++)); do
    case "${words[at]}" in
      --instance|--socket) which+=("${words[at]}=${words[at+1]}") ;;
    esac
  done
  governor completion "${which[@]}" 2>/dev/null
}
_governor_models() {
  local -a names=(${(f)"$(_governor_names models)"})
  compadd "$@" -a names
}
_governor_variants() {
  local -a names=(${(f)"$(_governor_names variants "--model=${words[CURRENT-1]}")"})
  compadd "$@" -a names
}
""",
    "fish": """\
function _governor_names
  set -l words (commandline -opc)
  set -l which $argv
  for at in (seq (count $words))
    switch $words[$at]
      case '--instance=*' '--socket=*'
        set -a which $words[$at]
      case --instance --socket
        if test $at -lt (count $words)
          set -a which $words[$at]=$words[(math $at + 1)]
        end
    end
  end
  governor completion $which 2>/dev/null
end
function _governor_models
  _governor_names models
end
function _governor_variants
  _governor_names variants --model=(commandline -opc)[-1]
end
""",
}

_EPILOG: Final = """\
for this shell only, or at every start of it:
  bash  source <(governor completion bash)      in ~/.bashrc
  zsh   eval "$(governor completion zsh)"       in ~/.zshrc, after compinit
  fish  governor completion fish | source       in ~/.config/fish/config.fish"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "completion",
        help="print the script that completes this command in bash, zsh or fish",
        description="Print the script that completes this command in a shell; "
        "or the names that the running governor knows, which the scripts ask for.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "what", choices=(*SHELLS, *_NAMES), help="a shell, or which names: one a line"
    )
    parser.add_argument("--model", metavar="MODEL", help="with `variants`: those of this model")
    add_socket(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a script, or names; none, and exit code 3, where no daemon answers at once."""
    if args.what in SHELLS:
        print(script(args.what))
        return output.OK
    from controller.cli.client import DaemonDownError, RefusedError, ask, socket_of

    try:
        status = ask(socket_of(args), "GET", "/v1/status", timeout_s=_TIMEOUT_S)
    except (DaemonDownError, RefusedError):
        return output.UNREACHABLE
    for name in _names(status, args.what, args.model):
        print(name)
    return output.OK


def script(shell: str) -> str:
    """Return the script for one of `SHELLS`, from every parser of the command."""
    import shtab

    from controller.cli.main import build_parser

    parser = build_parser()
    for action in _arguments(parser):
        kind = action.metavar if isinstance(action.metavar, str) else ""
        if kind in _FILES or (not kind and _is_path(action)):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif kind in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in {"model", "variant"} and kind in {"MODEL", "VARIANT"}:
            function = f"_governor_{action.dest}s"
            action.complete = {  # type: ignore[attr-defined]
                "bash": function,
                "zsh": function,
                "fish": f"({function})",
            }
    return shtab.complete(parser, shell, preamble=_FUNCTIONS[shell]).rstrip("\n")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to walk a parser
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for told in action._choices_actions:  # noqa: SLF001
                child = action.choices[told.dest]
                child.description = told.help  # beside its name there is room for a line
                yield from _arguments(child)
        else:
            yield action


def _is_path(action: argparse.Action) -> bool:
    from pathlib import Path

    return action.type is Path


def _names(status: Mapping[str, Any], what: str, model: str | None) -> list[str]:
    models = [one for one in status.get("models") or () if isinstance(one, dict)]
    if what == "models":
        return sorted(str(one.get("name")) for one in models)
    chosen = [one for one in models if one.get("name") == model] or models
    candidates = [each for one in chosen for each in one.get("candidates") or ()]
    return sorted({str(candidate.get("variant")) for candidate in candidates})
