"""The `governor` command: which module it loads, what it returns, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from controller import __version__
from controller.cli import main as cli
from controller.cli import output

POLICIES = Path(__file__).parents[2] / "policies"
DEMO = str(POLICIES / "demo.yaml")


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("version: 2\nmodels: {}\nmode: advice\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def command(monkeypatch):
    """Register a subcommand `run` of a module that exists for this test only."""

    def register(behaviour):
        class Module:
            @staticmethod
            def add_parser(subparsers):
                subparsers.add_parser("run").set_defaults(run=behaviour)

        monkeypatch.setitem(sys.modules, "controller.cli.run", Module)

    return register


def test_help_names_the_exit_codes(capsys):
    assert cli.main(["--help"]) == output.OK
    shown = capsys.readouterr().out
    for code in (output.OK, output.PROBLEM, output.USAGE, output.UNREACHABLE, output.INTERRUPTED):
        assert f"\n  {code} " in shown


def test_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == output.OK
    assert capsys.readouterr().out == f"governor {__version__}\n"


def test_no_command_is_a_usage_error_with_help(capsys):
    assert cli.main([]) == output.USAGE
    assert "usage: governor" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error_with_the_nearest_one(capsys):
    assert cli.main(["polcy", "check"]) == output.USAGE
    assert "did you mean policy?" in capsys.readouterr().err


def test_a_wrong_option_is_a_usage_error(capsys):
    assert cli.main(["policy", "check", "--nope", DEMO]) == output.USAGE
    assert "unrecognized arguments: --nope" in capsys.readouterr().err


def test_the_exit_code_is_that_of_the_command(command):
    command(lambda _args: output.UNREACHABLE)
    assert cli.main(["run"]) == output.UNREACHABLE


def test_ctrl_c_ends_without_a_traceback(command, capsys):
    def interrupted(_args):
        raise KeyboardInterrupt

    command(interrupted)
    assert cli.main(["run"]) == output.INTERRUPTED
    assert capsys.readouterr().err == ""


def test_an_error_inside_a_command_module_is_not_mistaken_for_its_absence(monkeypatch, tmp_path):
    (tmp_path / "needs_something.py").write_text("import not_there_at_all\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cli, "COMMANDS", {"run": "needs_something"})
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        cli.main(["run"])


def test_check_of_good_policies_says_what_they_mean(capsys):
    assert cli.main(["policy", "check", DEMO, str(POLICIES / "example.yaml")]) == output.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["fine", "fine"]


def test_check_says_all_problems_of_all_files(broken, capsys):
    assert cli.main(["policy", "check", broken, DEMO, "/nope/p.yaml"]) == output.PROBLEM
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"{broken}:1:1: triton: is missing")
    assert f"{broken}:1:10: version: must be 1" in lines[1]
    assert lines[-1] == "/nope/p.yaml: cannot be read: No such file or directory"
    assert captured.err == "5 problems\n"


def test_check_as_json_has_every_problem_with_its_place(broken, capsys):
    assert cli.main(["policy", "check", "--json", broken]) == output.PROBLEM
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["problems"][-1] == {
        "file": broken,
        "line": 3,
        "column": 7,
        "path": "mode",
        "message": "must be one of act, advise, not 'advice'",
        "suggestion": "advise",
    }


def test_show_writes_every_default_with_its_unit(capsys):
    assert cli.main(["policy", "show", DEMO]) == output.OK
    shown = capsys.readouterr().out
    assert "foreign_hold: 10m\n" in shown
    assert "max_busy: 5%\n" in shown
    assert "interval: auto  # a decision every 20ms\n" in shown


def test_show_as_json_has_the_same_values(capsys):
    assert cli.main(["policy", "show", "--json", DEMO]) == output.OK
    answer = json.loads(capsys.readouterr().out)
    assert answer["stability"]["min_dwell"] == "100ms"
    assert answer["mqtt"] is None


def test_show_of_a_bad_policy_prints_problems_to_stderr_alone(broken, capsys):
    assert cli.main(["policy", "show", broken]) == output.PROBLEM
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "version: must be 1" in captured.err


def test_schema_prints_the_shipped_schema(capsys):
    assert cli.main(["policy", "schema"]) == output.OK
    shipped = (POLICIES / "policy.schema.json").read_text(encoding="utf-8")
    assert capsys.readouterr().out == shipped
