"""Profiles in the model repository: the same weights under another name and another largest batch.

Owns what is written there: folders whose files are links, and their config.pbtxt. It must not
talk to a server, nor touch what it did not make.
"""

from __future__ import annotations

import enum
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controller.policy.model import ModelPolicy, VariantPolicy

_CONFIG: Final = "config.pbtxt"
_MARK: Final = "# Made by `governor profiles materialise`: change the original, and run it again.\n"
_LEFT_OUT: Final = frozenset({"__pycache__", _CONFIG})


class ProfileError(Exception):
    """A profile that cannot be made; the text says why and what to do."""


class Made(enum.StrEnum):
    """What became of a profile's folder."""

    MADE = "made"
    RENEWED = "renewed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile's folder."""

    name: str  # MODEL/VARIANT.PROFILE
    folder: Path
    max_batch: int
    made: Made


def materialise(
    models: Sequence[ModelPolicy], repository: Path, *, dry_run: bool = False
) -> Iterator[Profile]:
    """Put the folders of all profiles into a model repository; those that are right stay.

    A folder of its own for each, since Triton reloads a model whose folder changes and Python
    writes beside what it imports; links in it, since the weights are large.

    Args:
        models: whose profiles are made.
        repository: Triton's model repository, as it is on this machine.
        dry_run: say what would be done, and do nothing.

    Raises:
        ProfileError: the original is not there or cannot be read, or something else is in the
            profile's place.
        OSError: the repository cannot be written.
    """
    for model in models:
        for profile in model.variants:
            if profile.profile_of is not None and profile.max_batch is not None:
                original = model.variant(profile.profile_of)
                yield _materialise(
                    f"{model.name}/{profile.name}", original, profile, repository, dry_run
                )


def _materialise(
    name: str, original: VariantPolicy, profile: VariantPolicy, repository: Path, dry_run: bool
) -> Profile:
    limit = profile.max_batch or 1
    source, target = repository / original.model, repository / profile.model
    if not source.is_dir():
        raise ProfileError(
            f"{name}: there is no folder {source}; --repository is Triton's --model-repository"
        )
    wanted = {_CONFIG: _config(source / _CONFIG, profile.model, limit)}
    links = dict(_links(source, target))
    made = _state(name, target, wanted[_CONFIG], links)
    if made is not Made.UNCHANGED and not dry_run:
        _write(target, wanted[_CONFIG], links)
    return Profile(name, target, limit, made)


def _state(name: str, target: Path, config: str, links: dict[Path, str]) -> Made:
    """Return what is to be done for a profile's folder. Raises ProfileError: nothing may be."""
    if not target.exists() and not target.is_symlink():
        return Made.MADE
    there = target / _CONFIG
    try:
        text = there.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{name}: {there} cannot be read: {error}") from error
    if not text.startswith(_MARK):
        raise ProfileError(
            f"{name}: {target} is there already, and was not made by this command; it stays as it "
            "is. Give the profile another model, or move the folder away"
        )
    found = {path: str(path.readlink()) for path in sorted(target.rglob("*")) if path.is_symlink()}
    return Made.UNCHANGED if text == config and found == links else Made.RENEWED


def _write(target: Path, config: str, links: dict[Path, str]) -> None:
    """Put a folder in place as a whole: a server that polls must not see half of it."""
    staging = target.with_name(f".{target.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for path, to in links.items():
        link = staging / path.relative_to(target)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to)
    (staging / _CONFIG).write_text(config, encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    staging.rename(target)


def _links(source: Path, target: Path) -> Iterator[tuple[Path, str]]:
    """Yield, for each file of a model, where its link stands and what that says."""
    for folder, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for file in sorted(set(files) - _LEFT_OUT):
            path = Path(folder, file)
            link = target / path.relative_to(source)
            # Relative, as the server may see the repository elsewhere.
            yield link, os.path.relpath(path, link.parent)


def _config(original: Path, name: str, max_batch: int) -> str:
    """Return a config like the original's, with another name and largest batch."""
    from google.protobuf import text_format  # noqa: PLC0415 - slow to load, rarely needed
    from tritonclient.grpc import model_config_pb2  # noqa: PLC0415

    config = model_config_pb2.ModelConfig()
    if original.exists():
        try:
            text_format.Parse(original.read_text(encoding="utf-8"), config)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise ProfileError(f"{original}: {error}") from error
    if original.exists() and 0 < config.max_batch_size < max_batch:
        raise ProfileError(
            f"{original}: max_batch_size is {config.max_batch_size}; a profile of it cannot take "
            f"{max_batch} rows"
        )
    if original.exists() and config.max_batch_size == 0:
        raise ProfileError(f"{original}: the model does not batch (max_batch_size 0)")
    config.name, config.max_batch_size = name, max_batch
    _limit_preferred(config, max_batch)
    return _MARK + str(text_format.MessageToString(config))


def _limit_preferred(config: Any, max_batch: int) -> None:
    """Keep of the preferred batch sizes those that may be: Triton refuses larger ones."""
    if config.HasField("dynamic_batching"):
        preferred = config.dynamic_batching.preferred_batch_size
        kept = [rows for rows in preferred if rows <= max_batch]
        preferred[:] = kept
