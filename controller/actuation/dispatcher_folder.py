"""A dispatcher in the model repository: the folder of the model that binds requests late.

Owns what is written there. It must not talk to a server, nor touch what it did not make.

The folder is written by an operator's command and never sent over the wire: the governor sends no
code to a server.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controller import dispatch
from controller.actuation import alias as shape
from controller.actuation.client import CONTROL, REPORT
from controller.actuation.profiles import Made, replacing
from controller.policy.model import DispatcherPolicy, ModelPolicy

_CONFIG: Final = "config.pbtxt"
_MARK: Final = "# Made by `governor dispatcher write`: change the policy, and run it again.\n"
_MOST_AT_ONCE: Final = 32  # requests that Triton hands over in one call
# Of the package `controller.dispatch`; all else of it lies beside that, in a package of its own.
_MODEL: Final = "server/model.py"
_PACKAGE: Final = "dispatch"


class DispatcherError(Exception):
    """A dispatcher that cannot be written; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Written:
    """One dispatcher's folder."""

    model: str  # what clients call
    folder: Path
    made: Made


def write(
    models: Sequence[ModelPolicy], repository: Path, *, dry_run: bool = False
) -> Iterator[Written]:
    """Put the folders of all dispatchers into a model repository; those that are right stay.

    Args:
        models: whose dispatchers are written.
        repository: Triton's model repository, as it is on this machine.
        dry_run: say what would be done, and do nothing.

    Raises:
        DispatcherError: a variant's config is not there, cannot be read or does not fit.
        OSError: the repository or a key cannot be written.
    """
    for model in models:
        if model.dispatcher is not None:
            yield _write(model, model.dispatcher, repository, dry_run)


def _write(
    model: ModelPolicy, dispatcher: DispatcherPolicy, repository: Path, dry_run: bool
) -> Written:
    folder = repository / dispatcher.model
    there = folder / _CONFIG
    if folder.exists() and not (there.is_file() and there.read_text("utf-8").startswith(_MARK)):
        return Written(model.name, folder, Made.THEIRS)
    config = _MARK + _config(model, dispatcher, repository)
    files = {"key": _key(Path(dispatcher.key_file), dry_run=dry_run)}
    code = Path(dispatch.__file__).parent
    files["model.py"] = (code / _MODEL).read_bytes()
    files |= {f"{_PACKAGE}/{path.name}": path.read_bytes() for path in sorted(code.glob("*.py"))}
    made = Made.MADE
    if folder.exists():
        same = there.read_text("utf-8") == config and all(
            _read(folder / "1" / name) == content for name, content in files.items()
        )
        made = Made.UNCHANGED if same else Made.RENEWED
    if made is not Made.UNCHANGED and not dry_run:
        _put(folder, config, files)
    return Written(model.name, folder, made)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _key(path: Path, *, dry_run: bool) -> bytes:
    """Return the secret, made where there is none: for its owner and group to read."""
    if path.exists():
        key = path.read_bytes().strip()
        if len(key) < 16:
            raise DispatcherError(f"{path}: a key of a dispatcher has 16 bytes at least")
        return key
    key = secrets.token_hex(32).encode()
    if not dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        with open(handle, "wb") as file:  # noqa: PTH123 - it is open already
            file.write(key + b"\n")
    return key


def _put(folder: Path, config: str, files: dict[str, bytes]) -> None:
    with replacing(folder) as staging:
        (staging / "1" / _PACKAGE).mkdir(parents=True)
        for name, content in files.items():
            (staging / "1" / name).write_bytes(content)
        (staging / "1" / "key").chmod(0o640)
        # Python writes what it compiled beside what it imports, and Triton makes a model anew whose
        # folder changed. A file of that name has no folder's place for it.
        for within in (staging / "1", staging / "1" / _PACKAGE):
            (within / "__pycache__").write_bytes(b"")
        (staging / _CONFIG).write_text(config, encoding="utf-8")


def _config(model: ModelPolicy, dispatcher: DispatcherPolicy, repository: Path) -> str:
    """Return the config of a dispatcher: what its variants share, and the governor's tensors."""
    variants = [_parsed(repository / variant.model / _CONFIG) for variant in model.variants]
    promise = shape.build(model.name, variants, client_max_batch=model.client_max_batch)
    for one in variants:
        name = one["name"]
        if shape.max_batch(one) < 1:
            raise DispatcherError(f"{name} does not batch (max_batch_size 0): nothing to bind late")
        if shape.is_decoupled(one):
            raise DispatcherError(f"{name} streams: a dispatcher gives one answer to a request")
        problems = [*shape.fits(shape.point(promise, name, shape.Marker("-", 0)), one)]
        if problems:
            raise DispatcherError(f"{model.name}: {'; '.join(map(str, problems))}")
        if not one.get("input") or not one.get("output"):
            raise DispatcherError(
                f"{name}: its config.pbtxt names no input or no output; a dispatcher promises what "
                "stands there, so write them out"
            )
    value: dict[str, Any] = {
        "name": dispatcher.model,
        "backend": "python",
        "max_batch_size": max(shape.max_batch(promise), _MOST_AT_ONCE),
        "input": [
            *promise["input"],
            {"name": CONTROL, "data_type": "TYPE_STRING", "dims": [1], "optional": True},
        ],
        "output": [
            *promise["output"],
            {"name": REPORT, "data_type": "TYPE_STRING", "dims": [1]},
        ],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "dynamic_batching": {},
        "parameters": {
            "first": {"string_value": min(model.variants, key=lambda one: one.quality).model},
            "client_max_batch": {"string_value": str(shape.max_batch(promise))},
        },
    }
    from google.protobuf import json_format, text_format  # noqa: PLC0415 - slow, rarely needed
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415

    message = json_format.ParseDict(value, model_config_pb2.ModelConfig())
    return str(text_format.MessageToString(message))


def _parsed(path: Path) -> dict[str, Any]:
    """Return a config from disk as JSON values, as the server tells them."""
    from google.protobuf import json_format, text_format  # noqa: PLC0415 - slow, rarely needed
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415

    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except FileNotFoundError:
        raise DispatcherError(
            f"there is no {path}; --repository is Triton's --model-repository"
        ) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise DispatcherError(f"{path}: {error}") from error
    config.name = config.name or path.parent.name
    found: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return found
