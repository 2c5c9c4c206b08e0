"""Profiles in a model repository: links to the original's files, and nothing else touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controller.actuation.profiles import Made, ProfileError, materialise
from controller.cli.main import main
from controller.policy.load import parse_policy
from controller.policy.model import ModelPolicy

POLICY = """\
version: 1
triton: {grpc: 127.0.0.1:8001}
models:
  digits:
    objective: {latency: 60ms, percentile: 99}
    variants:
      wide:
        model: digits_wide
        quality: 0.927
        max_batch: 8
        profiles:
          b1: {model: digits_wide_b1, max_batch: 1}
          b4: {model: digits_wide_b4, max_batch: 4}
      narrow: {model: digits_narrow, quality: 0.884}
"""
CONFIG = """\
name: "digits_wide"
backend: "python"
max_batch_size: 8
dynamic_batching { preferred_batch_size: [ 2, 8 ] max_queue_delay_microseconds: 500 }
model_warmup [ { name: "full" batch_size: 8 } ]
instance_group [ { count: 2 kind: KIND_CPU } ]
"""


def models() -> tuple[ModelPolicy, ...]:
    return parse_policy(POLICY, "p.yaml").models


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    version = folder / "digits_wide" / "1"
    (version / "weights").mkdir(parents=True)
    (version / "__pycache__").mkdir()
    (version / "__pycache__" / "model.pyc").write_text("")
    (version / "model.py").write_text("the code")
    (version / "weights" / "config.pbtxt").write_text("not Triton's")
    (folder / "digits_wide" / "2").mkdir()
    (version / "weights" / "w.bin").write_text("the weights")
    (folder / "digits_wide" / "config.pbtxt").write_text(CONFIG)
    return folder


def config_of(repository: Path, model: str):
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_profile_has_the_originals_files_and_its_own_limit(repository: Path) -> None:
    found = list(materialise(models(), repository))
    assert [(one.name, one.max_batch, one.made) for one in found] == [
        ("digits/wide.b1", 1, Made.MADE),
        ("digits/wide.b4", 4, Made.MADE),
    ]
    config = config_of(repository, "digits_wide_b4")
    assert (config.name, config.max_batch_size) == ("digits_wide_b4", 4)
    assert list(config.dynamic_batching.preferred_batch_size) == [2]  # Triton refuses an 8
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.instance_group[0].count == 2
    assert config.model_warmup[0].batch_size == 4
    made = repository / "digits_wide_b4"
    assert (made / "1/weights/w.bin").read_text() == "the weights"
    assert (made / "1/weights/w.bin").is_symlink()
    assert not (made / "1").is_symlink()  # what Python writes there is the profile's own
    assert not (made / "1/__pycache__").exists()
    assert (made / "1/weights/config.pbtxt").read_text() == "not Triton's"
    assert (made / "2").is_dir()  # a version without files is one, too


def test_links_hold_where_the_repository_is_seen_elsewhere(repository: Path) -> None:
    list(materialise(models(), repository))
    moved = repository.rename(repository.with_name("elsewhere"))
    assert (moved / "digits_wide_b1/1/model.py").read_text() == "the code"


def test_what_is_right_stays_and_what_changed_is_renewed(repository: Path) -> None:
    list(materialise(models(), repository))
    before = (repository / "digits_wide_b1").stat().st_ino
    assert {one.made for one in materialise(models(), repository)} == {Made.UNCHANGED}
    (repository / "digits_wide_b1/1/__pycache__").mkdir()  # Triton's Python was there
    assert {one.made for one in materialise(models(), repository)} == {Made.UNCHANGED}
    assert (repository / "digits_wide_b1").stat().st_ino == before
    (repository / "digits_wide/1/more.bin").write_text("")
    assert {one.made for one in materialise(models(), repository)} == {Made.RENEWED}
    assert (repository / "digits_wide_b1/1/more.bin").is_symlink()


def test_a_dry_run_says_the_same_and_does_nothing(repository: Path) -> None:
    found = list(materialise(models(), repository, dry_run=True))
    assert {one.made for one in found} == {Made.MADE}
    assert [path.name for path in repository.iterdir()] == ["digits_wide"]


def test_somebody_elses_folder_is_never_touched(repository: Path) -> None:
    theirs = repository / "digits_wide_b4"
    theirs.mkdir()
    (theirs / "config.pbtxt").write_text('name: "digits_wide_b4"')
    (repository / "digits_wide/config.pbtxt").write_text(CONFIG.replace("size: 8", "size: 2"))
    found = {one.name: one.made for one in materialise(models(), repository)}
    assert found == {"digits/wide.b1": Made.MADE, "digits/wide.b4": Made.THEIRS}
    assert [path.name for path in theirs.iterdir()] == ["config.pbtxt"]
    assert (theirs / "config.pbtxt").read_text() == 'name: "digits_wide_b4"'


def test_an_engine_put_in_the_place_of_a_link_is_not_lost(repository: Path) -> None:
    list(materialise(models(), repository))
    engine = repository / "digits_wide_b4/1/model.py"
    engine.unlink()
    engine.write_text("compiled for four rows")
    with pytest.raises(ProfileError, match="would be lost"):
        list(materialise(models(), repository))
    assert engine.read_text() == "compiled for four rows"


def test_a_link_to_a_folder_is_somebody_elses(repository: Path) -> None:
    list(materialise(models(), repository))
    made = repository / "digits_wide_b4"
    made.rename(repository.with_name("elsewhere"))
    made.symlink_to("../elsewhere")
    (repository / "digits_wide/1/more.bin").write_text("")
    found = {one.name: one.made for one in materialise(models(), repository)}
    assert found == {"digits/wide.b1": Made.RENEWED, "digits/wide.b4": Made.THEIRS}
    assert made.is_symlink()


def test_a_renewal_that_fails_half_way_leaves_what_was_there(repository: Path, monkeypatch) -> None:
    list(materialise(models(), repository))
    (repository / "digits_wide/1/more.bin").write_text("")
    monkeypatch.setattr(Path, "symlink_to", _fail)
    with pytest.raises(OSError, match="no space"):
        list(materialise(models(), repository))
    assert (repository / "digits_wide_b1/1/model.py").read_text() == "the code"
    names = {path.name for path in repository.iterdir()}
    assert names == {"digits_wide", "digits_wide_b1", "digits_wide_b4"}


def _fail(*_: object) -> None:
    raise OSError("no space left")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("max_batch_size: 2", "a profile of it cannot take 4 rows"),
        ("max_batch_size: 0", "does not batch"),
        ("max_batch_size: many", "config.pbtxt"),
        ("no_such_field: 1", "no_such_field"),
    ],
)
def test_an_original_that_cannot_have_it_is_named(repository: Path, config: str, what: str) -> None:
    (repository / "digits_wide/config.pbtxt").write_text(config)
    with pytest.raises(ProfileError, match=what):
        list(materialise(models(), repository))


def test_an_original_without_a_config_is_completed_by_triton(repository: Path) -> None:
    (repository / "digits_wide/config.pbtxt").unlink()
    list(materialise(models(), repository))
    config = config_of(repository, "digits_wide_b1")
    assert (config.name, config.max_batch_size, config.backend) == ("digits_wide_b1", 1, "")


def test_the_command_tells_what_it_did(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "p.yaml"
    policy.write_text(POLICY)
    arguments = ["profiles", "materialise", str(policy), "--repository", str(repository)]
    assert main([*arguments, "--dry-run"]) == 0
    assert "digits_wide_b1 would be made (max_batch_size 1)" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["ok"]) == (False, True)
    assert [(one["name"], one["made"]) for one in told["profiles"]] == [
        ("digits/wide.b1", "made"),
        ("digits/wide.b4", "made"),
    ]
    policy.write_text(
        f"{POLICY}hosts: {{h: {{models: {{digits: {{objective: {{latency: 0}}}}}}}}}}\n"
    )
    assert main([*arguments, "--host", "h"]) == 1
    assert "objective.latency" in capsys.readouterr().err
    assert main(arguments) == 0
    assert main([*arguments[:-1], str(tmp_path / "nowhere")]) == 1
    assert "--repository is Triton's --model-repository" in capsys.readouterr().err
