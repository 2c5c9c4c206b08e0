"""Profiles in the model repository: the same weights under another name and another largest batch.

Owns what is written there: folders whose files are links, and their config.pbtxt. It must not
talk to a server, nor touch what it did not make.
"""

from __future__ import annotations

import enum
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controller.policy.model import ModelPolicy, VariantPolicy

_CONFIG: Final = "config.pbtxt"
_MARK: Final = "# Made by `governor profiles materialise`: change the original, and run it again.\n"
_COMPILED: Final = "__pycache__"  # of Python's own, beside what it imports


class ProfileError(Exception):
    """A profile that cannot be made; the text says why and what to do."""


class Made(enum.StrEnum):
    """What became of a profile's folder."""

    MADE = "made"
    RENEWED = "renewed"
    UNCHANGED = "unchanged"
    THEIRS = "theirs"  # not made by this command: left as it is


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

    What somebody else put there, such as an engine compiled for one batch size, stays, too.

    A folder of its own for each, since Triton reloads a model whose folder changes and Python
    writes beside what it imports; links in it, since the weights are large.

    Args:
        models: whose profiles are made.
        repository: Triton's model repository, as it is on this machine.
        dry_run: say what would be done, and do nothing.

    Raises:
        ProfileError: the original is not there or cannot be read, or a file of somebody else's
            is in a folder that would have to be made anew.
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
    if target.is_symlink() or (target.exists() and not _is_ours(target)):
        return Profile(name, target, limit, Made.THEIRS)
    if not source.is_dir():
        raise ProfileError(
            f"{name}: there is no folder {source}; --repository is Triton's --model-repository"
        )
    config = _config(source / _CONFIG, profile.model, limit)
    folders, links = _contents(source, target)
    made = Made.MADE
    if target.exists():
        text = (target / _CONFIG).read_text(encoding="utf-8")
        same = text == config and _links_in(name, target) == links
        made = Made.UNCHANGED if same else Made.RENEWED
    if made is not Made.UNCHANGED and not dry_run:
        _write(target, config, folders, links)
    return Profile(name, target, limit, made)


def _is_ours(target: Path) -> bool:
    """Return whether this command made a folder."""
    try:
        return (target / _CONFIG).read_text(encoding="utf-8").startswith(_MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _links_in(name: str, target: Path) -> dict[Path, str]:
    """Return the links in a folder of ours. Raises ProfileError where there is anything else."""
    found = {}
    for path in sorted(target.rglob("*")):
        if path.is_symlink():
            found[path] = str(path.readlink())
        elif path.is_file() and path != target / _CONFIG and _COMPILED not in path.parts:
            raise ProfileError(
                f"{name}: {path} is no link of this command's, and would be lost; move it away, or "
                f"take the first line out of {target / _CONFIG} to keep the folder as it is"
            )
    return found


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a folder to write to, which then takes the place of another one.

    What was there stays until all of the new one is written. Beside it, under a name that no model
    has: a server in explicit mode looks at no such folder.
    """
    staging, old = (target.with_name(f".{target.name}.{what}") for what in ("new", "old"))
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        if target.exists():
            target.rename(old)
        staging.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for rest in (staging, old):
            shutil.rmtree(rest, ignore_errors=True)


def _write(target: Path, config: str, folders: list[Path], links: dict[Path, str]) -> None:
    with replacing(target) as staging:
        for folder in folders:
            (staging / folder.relative_to(target)).mkdir(parents=True, exist_ok=True)
        for path, to in links.items():
            (staging / path.relative_to(target)).symlink_to(to)
        (staging / _CONFIG).write_text(config, encoding="utf-8")


def _contents(source: Path, target: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the folders of a profile, and for each file where its link stands and what it says."""
    own, links = [], {}
    for folder, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(set(folders) - {_COMPILED})
        here = target / Path(folder).relative_to(source)
        own.append(here)
        for file in sorted(files):
            path = Path(folder, file)
            if path != source / _CONFIG:
                # Relative, as the server may see the repository elsewhere.
                links[here / file] = os.path.relpath(path, here)
    return own, links


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
    _limit(config, max_batch)
    return _MARK + str(text_format.MessageToString(config))


def _limit(config: Any, max_batch: int) -> None:
    """Lower what of a config would be more than its largest batch: Triton refuses it."""
    if config.HasField("dynamic_batching"):
        preferred = config.dynamic_batching.preferred_batch_size
        kept = [rows for rows in preferred if rows <= max_batch]
        preferred[:] = kept
    for warmup in config.model_warmup:
        warmup.batch_size = min(warmup.batch_size, max_batch)
