import dataclasses
import json
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from controller.embedded import ladder as ladder_module
from controller.embedded.install import Installation
from controller.embedded.ladder import LadderError, ensure_ladder, sample_requests

# A training that takes no time; what it leaves is laid out as the real one's.
TRAINING = """
import json, sys
from pathlib import Path
import numpy as np

folder = Path(sys.argv[1])
with (folder.parent / "trainings").open("a") as count:
    count.write("once\\n")
print("PROGRESS 0.500 half way", flush=True)
version = folder / "repository/digits_one/1"
version.mkdir(parents=True)
for path in (version.parent / "config.pbtxt", version / "model.py", version / "model.onnx"):
    path.write_text("content")
np.savez(folder / "held_out.npz", pages=np.zeros((3, 80, 80), np.uint8),
         labels=np.arange(3, dtype=np.int32), sources=np.arange(3, dtype=np.int32),
         correct=np.ones((1, 3), bool))
(folder / "ladder.json").write_text(json.dumps({"variants": [{
    "name": "one", "model": "digits_one", "quality": 0.9, "quality_error": 0.01,
    "compression": "none", "params": 7, "batch_ms": {"1": 0.5, "8": 3.0}}]}))
"""


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The folder of the training script, to be written by the test."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "train.py").write_text(TRAINING)
    monkeypatch.setattr(ladder_module, "_SCRIPTS", folder)
    return folder


@pytest.fixture
def installation(tmp_path):
    """An installation whose interpreter is this one."""
    root = tmp_path / "server"
    root.mkdir()
    return Installation(
        root=root,
        python=Path(sys.executable),
        tritonserver=root / "tritonserver",
        backends=root,
        caches=root,
        library_folder=None,
        triton_version="",
        versions={},
    )


def trainings(installation):
    return (installation.root / "trainings").read_text().count("once")


def quiet(what, ratio):
    pass


def test_it_is_trained_once_and_tells_how_far_it_is(scripts, installation):
    said = []
    ladder = ensure_ladder(installation, lambda what, ratio: said.append((what, ratio)))
    assert said == [("half way", 0.5)]
    assert ensure_ladder(installation, quiet) == ladder
    assert trainings(installation) == 1
    (variant,) = ladder.variants
    assert (variant.name, variant.quality, variant.batch_ms) == ("one", 0.9, {1: 0.5, 8: 3.0})
    assert (ladder.repository / variant.model / "1/model.onnx").is_file()


def test_two_that_want_it_at_once_train_it_once(scripts, installation):
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: ensure_ladder(installation, quiet), range(2))
    assert one == other
    assert trainings(installation) == 1


def test_another_recipe_is_another_ladder(scripts, installation):
    old = ensure_ladder(installation, quiet)
    (scripts / "train.py").write_text(TRAINING + "# another seed\n")
    new = ensure_ladder(installation, quiet)
    assert new.root != old.root
    assert old.root.exists()  # a server may be serving it


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "ladder.json").write_text("{"),
        lambda root: (root / "ladder.json").write_text('{"variants": []}'),
        lambda root: (root / "ladder.json").write_text('{"variants": [{"batch_ms": 3}]}'),
        lambda root: (root / "ladder.json").write_text("[]"),
        lambda root: (root / "held_out.npz").unlink(),
        lambda root: (root / "repository/digits_one/1/model.onnx").unlink(),
    ],
)
def test_a_damaged_ladder_is_made_anew(scripts, installation, damage):
    whole = ensure_ladder(installation, quiet)
    damage(whole.root)
    assert ensure_ladder(installation, quiet) == whole
    assert trainings(installation) == 2


def test_a_failed_training_says_why_and_leaves_nothing(scripts, installation):
    (scripts / "train.py").write_text("print('PROGRESS 0 start'); raise MemoryError('no room')")
    with pytest.raises(LadderError, match=r"(?s)exit 1.*MemoryError: no room"):
        ensure_ladder(installation, quiet)
    assert [path.suffix for path in installation.root.iterdir()] == [".lock"]


def test_a_training_that_leaves_no_models_is_refused(scripts, installation):
    (scripts / "train.py").write_text("")
    with pytest.raises(LadderError, match="without models"):
        ensure_ladder(installation, quiet)


def test_an_interpreter_that_is_gone_is_an_error_in_words(scripts, installation):
    gone = dataclasses.replace(installation, python=installation.root / "gone")
    with pytest.raises(LadderError, match="did not start"):
        ensure_ladder(gone, quiet)


def test_what_an_interrupted_training_left_is_removed(scripts, installation):
    ladder = ensure_ladder(installation, quiet)
    leftover = installation.root / f".{ladder.root.name}-half"
    leftover.mkdir()
    (ladder.root / "ladder.json").unlink()
    ensure_ladder(installation, quiet)
    assert not leftover.exists()


def test_an_interruption_ends_the_training_and_its_workers(scripts, installation):
    (scripts / "train.py").write_text(
        textwrap.dedent("""
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("PROGRESS 0 started", flush=True)
        time.sleep(600)
        """)
    )
    running = []
    others = set(psutil.Process().children(recursive=True))  # servers of other tests

    def interrupt(what, ratio):
        running.extend(set(psutil.Process().children(recursive=True)) - others)
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ensure_ladder(installation, interrupt)
    assert len(running) == 2
    _, alive = psutil.wait_procs(running, timeout=10)
    assert not alive
    assert time.monotonic() - start < 60
    assert [path.suffix for path in installation.root.iterdir()] == [".lock"]


def test_held_out_pages_come_with_what_they_show(scripts, installation):
    samples = sample_requests(ensure_ladder(installation, quiet))
    assert samples.pages.shape == (3, 80, 80)
    assert samples.labels.tolist() == [0, 1, 2]
    assert samples.correct.dtype == np.bool_


def test_unreadable_held_out_pages_are_an_error_in_words(scripts, installation):
    ladder = ensure_ladder(installation, quiet)
    (ladder.root / "held_out.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(LadderError, match=r"remove .* and run"):
        sample_requests(ladder)


def test_the_stamp_is_what_was_measured(scripts, installation):
    ladder = ensure_ladder(installation, quiet)
    stored = json.loads((ladder.root / "ladder.json").read_text())
    assert stored["variants"][0]["quality_error"] == ladder.variants[0].quality_error
