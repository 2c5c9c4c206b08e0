"""`governor triton load`: what it refuses, and what it tells of a load."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from controller.cli.main import main
from controller.demo import practice
from controller.demo.load import Progress
from controller.embedded import install, ladder, supervisor


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An embedded Triton that runs, so far as the command can tell, with the sample models."""
    repository = tmp_path / "repository"
    ports = SimpleNamespace(grpc=8001)
    state = SimpleNamespace(repository=str(repository), ports=ports)
    monkeypatch.setattr(supervisor, "running", lambda: state)
    monkeypatch.setattr(install, "install", lambda _progress: None)
    samples = SimpleNamespace(repository=repository)
    monkeypatch.setattr(ladder, "ensure_ladder", lambda *_: samples)
    return state


def test_without_a_server_it_says_how_to_start_one(monkeypatch, capsys):
    monkeypatch.setattr(supervisor, "running", lambda: None)
    assert main(["triton", "load", "digits"]) == 1
    assert "'governor triton start' starts one" in capsys.readouterr().err


def test_a_server_with_other_models_is_not_loaded(server, capsys):
    server.repository = "/srv/models"
    assert main(["triton", "load", "digits"]) == 1
    assert "serves /srv/models, not the sample models" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["9", "3601", "nan", "soon"])
def test_a_length_that_shows_nothing_or_never_ends_is_refused(seconds, capsys):
    assert main(["triton", "load", "digits", "--seconds", seconds]) == 2
    assert "not a number of seconds from 10 to 3600" in capsys.readouterr().err


def test_the_outcome_is_told_in_a_line(server, monkeypatch, capsys):
    def run(samples, address, model, seconds, seed, say):
        assert (address, model, seconds, seed) == ("127.0.0.1:8001", "digits", 20.0, 7)
        return practice.Summary(100, 2, 3, {"tiny": 60, "wide": 38})

    monkeypatch.setattr(practice, "run", run)
    assert main(["triton", "load", "digits", "--seconds", "20", "--seed", "7"]) == 0
    told = capsys.readouterr().out
    assert told == "100 requests, 2 failed, 3 late; answered by tiny 60, wide 38\n"


def test_a_line_of_progress_names_the_variant_that_answered():
    progress = Progress(-0.2, 10, 1, 3, 40.0, 6, 0, None, 12.34, 1)
    line = practice._line(progress, ["tiny", "wide"])
    assert line.split() == ["0", "s", "10", "40", "1", "3", "-", "12.3", "wide"]
