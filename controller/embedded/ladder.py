"""The sample models: a ladder of variants of one classifier, from fast to good.

Owns the folder ``INSTALLATION/ladder-<digest of the recipe>``: a model repository, the held-out
pages that its quality was measured on, and what was measured (``ladder.json``). The work is done
by ``models/train.py`` in the server's environment; nothing of that is imported here. It must not
start a server. The same for ``engines-<digest>``, made by ``engines/make.py``: another classifier
in engines of fixed shapes, for `governor demo --scenario batch`.

The task is to find and read the one digit on a noisy page of 80 x 80 pixels; a small perceptron
is slid over the page as convolutions. `docs/ladder.md` says how each variant is made and what
was measured.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.embedded.install import Installation, Progress, file_lock

INPUT = "page"
"""The input tensor of every variant: UINT8, rows x 80 x 80, ink either darker or lighter."""
INPUT_SHAPE = (80, 80)
OUTPUT = "scores"
"""FP32, rows x 10: the digit's class is the greatest."""
CLASSES = 10
VARIANT_OUTPUT = "variant"
"""INT32, rows x 1: which variant served, as its place in `Ladder.variants`."""
MAX_BATCH = 8
DEVICE_ENV = "TRITON_GOVERNOR_DEVICE"
"""Names the processor that engines run on, in the server's environment; unset: any."""

_SCRIPTS = Path(__file__).with_name("models")
_ENGINES = Path(__file__).with_name("engines")
_FORMAT = 1
_TAIL_LINES = 12


class LadderError(Exception):
    """The sample models could not be made; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class LadderVariant:
    """One variant and what was measured of it."""

    name: str
    model: str
    """The name of its Triton model."""
    quality: float
    """Share of held-out pages that the exported model reads, in [0, 1]."""
    quality_error: float
    """Standard error of the quality, clustered by the digit that a page was made from."""
    compression: str
    """How it was made."""
    params: int
    batch_ms: Mapping[int, float]
    """Time of a run of ONNX Runtime by rows, without the Python backend's share."""
    max_batch: int = MAX_BATCH
    profile_of: str | None = None
    """The variant whose weights it serves in an engine of another shape."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The sample models on disk, the fastest variant first."""

    root: Path
    repository: Path
    """Triton's model repository: one folder for each variant."""
    variants: tuple[LadderVariant, ...]


@dataclass(frozen=True, slots=True)
class SampleRequests:
    """Held-out pages, and which variant reads which."""

    pages: NDArray[np.uint8]
    """Pages x 80 x 80."""
    labels: NDArray[np.int32]
    """What each page shows."""
    sources: NDArray[np.int32]
    """Which held-out digit each page was made from: pages of one digit are alike."""
    correct: NDArray[np.bool_]
    """Variants x pages: read as it should be, when the quality was measured."""


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a ladder is made."""

    name: str
    script: Path
    sources: tuple[Path, ...]
    """Folders of whatever has a part in it."""

    def root(self, installation: Installation) -> Path:
        """Return a folder that belongs to this recipe, so that versions coexist."""
        digest = hashlib.sha256(str(_FORMAT).encode())
        for folder in self.sources:
            for script in sorted(folder.glob("*.py")):
                digest.update(script.name.encode() + b"\0" + script.read_bytes())
        return installation.root / f"{self.name}-{digest.hexdigest()[:8]}"


def ensure_ladder(installation: Installation, progress: Progress) -> Ladder:
    """Make sure that the sample models are there, and return them.

    Trains them where they are not (one to two minutes on two cores). Safe when two processes do
    it at once; half a training leaves nothing that is taken for a ladder.

    Raises:
        LadderError: they could not be made, with the tail of what the training said.
    """
    recipe = _Recipe("ladder", _SCRIPTS / "train.py", (_SCRIPTS,))
    return _ensure(installation, recipe, progress)


def ensure_engines(installation: Installation, progress: Progress) -> Ladder:
    """Make sure that the engines of the batch scenario are there, and return them.

    Takes a minute on two cores where they are not, and 400 MB. Otherwise as `ensure_ladder`.

    Raises:
        LadderError: they could not be made, with the tail of what was said.
    """
    recipe = _Recipe("engines", _ENGINES / "make.py", (_SCRIPTS, _ENGINES))
    return _ensure(installation, recipe, progress)


def _ensure(installation: Installation, recipe: _Recipe, progress: Progress) -> Ladder:
    root = recipe.root(installation)
    ready = _read(root)
    if ready is not None:
        return ready
    with file_lock(root.with_name(f"{root.name}.lock"), progress):
        ready = _read(root)  # somebody else may have done it meanwhile
        return ready if ready is not None else _build(installation, recipe, root, progress)


def sample_requests(ladder: Ladder) -> SampleRequests:
    """Load the held-out pages, in random order, for a load generator to send.

    Raises:
        LadderError: the file cannot be read.
    """
    path = ladder.root / "held_out.npz"
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return SampleRequests(
                pages=stored["pages"],
                labels=stored["labels"],
                sources=stored["sources"],
                correct=stored["correct"],
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise LadderError(
            f"{path}: cannot be read ({error}); remove {ladder.root} and run "
            "'governor triton install'"
        ) from error


def _read(root: Path) -> Ladder | None:
    """Return the ladder, or None if it is not there as it should be."""
    try:
        stored = json.loads((root / "ladder.json").read_text(encoding="utf-8"))
        variants = tuple(_read_variant(variant) for variant in stored["variants"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    repository = root / "repository"
    needed = [root / "held_out.npz"]
    for variant in variants:
        folder = repository / variant.model
        needed += [folder / "config.pbtxt", folder / "1/model.py", folder / "1/model.onnx"]
    complete = bool(variants) and all(path.is_file() for path in needed)
    return Ladder(root, repository, variants) if complete else None


def _read_variant(stored: Mapping[str, Any]) -> LadderVariant:
    return LadderVariant(
        name=str(stored["name"]),
        model=str(stored["model"]),
        quality=float(stored["quality"]),
        quality_error=float(stored["quality_error"]),
        compression=str(stored["compression"]),
        params=int(stored["params"]),
        batch_ms={int(rows): float(time_ms) for rows, time_ms in stored["batch_ms"].items()},
        max_batch=int(stored.get("max_batch", MAX_BATCH)),
        profile_of=stored.get("profile_of"),
    )


def _build(installation: Installation, recipe: _Recipe, root: Path, progress: Progress) -> Ladder:
    # What an interrupted training left; the lock says that nobody is at it.
    for leftover in root.parent.glob(f".{root.name}-*"):
        shutil.rmtree(leftover)
    if root.exists():
        shutil.rmtree(root)
    staging = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _train(installation, recipe, staging, progress)
        if _read(staging) is None:
            raise LadderError("training the sample models ended without models; please report it")
        staging.replace(root)
    except OSError as error:
        raise LadderError(f"the sample models could not be stored: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    ladder = _read(root)
    if ladder is None:
        raise LadderError(f"{root}: vanished while it was made; run it again")
    return ladder


def _train(installation: Installation, recipe: _Recipe, folder: Path, progress: Progress) -> None:
    """Run the training to its end; it ends with this process or its interruption."""
    environment = installation.environment()
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the package's own folder may be read-only
    command = [str(installation.python), str(recipe.script), str(folder)]
    try:
        process = subprocess.Popen(  # noqa: S603 - our own script
            command,
            stdin=subprocess.PIPE,  # its end tells the training that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            process_group=0,
        )
    except OSError as error:
        raise LadderError(f"the training of the sample models did not start: {error}") from error
    with process:
        try:
            tail = _follow(process.stdout or iter(()), progress)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if code != 0:
        raise LadderError(f"training the sample models failed (exit {code}):\n{tail}")


def _follow(lines: Iterator[str], progress: Progress) -> str:
    """Pass progress on; return the tail of everything else."""
    other: deque[str] = deque(maxlen=_TAIL_LINES)
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word == "PROGRESS":
            ratio, _, what = rest.partition(" ")
            progress(what, float(ratio))
        elif line.strip():
            other.append(line.rstrip())
    return "\n".join(other)
