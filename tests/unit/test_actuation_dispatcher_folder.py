"""A dispatcher's folder: what the variants share, the code and a key; others' stay as they are."""

import ast
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from controller.actuation import alias as shape
from controller.actuation.client import CONTROL, REPORT
from controller.actuation.dispatcher_folder import DispatcherError, write
from controller.cli.main import main
from controller.policy.model import DispatcherPolicy, ModelPolicy, Objective, VariantPolicy

CONFIG = """
max_batch_size: {most}
input {{ name: "IN" data_type: TYPE_FP32 dims: [ {dims} ] }}
output {{ name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }}
{more}
"""


def variant(root: Path, name: str, *, most: int = 8, dims: int = -1, more: str = "") -> None:
    (root / name).mkdir(parents=True)
    text = CONFIG.format(most=most, dims=dims, more=more)
    (root / name / "config.pbtxt").write_text(text)


@pytest.fixture
def root(tmp_path):
    variant(tmp_path / "models", "b")
    variant(tmp_path / "models", "f", most=4, more='output { name: "MORE" data_type: TYPE_INT8 }')
    return tmp_path / "models"


def model(root: Path, **changes) -> ModelPolicy:
    base = ModelPolicy(
        "chat",
        Objective(0.1, 99.0),
        (VariantPolicy("best", "b", 0.9), VariantPolicy("fast", "f", 0.8)),
        client_max_batch=4,
        dispatcher=DispatcherPolicy("late", str(root.parent / "secrets" / "key")),
    )
    return replace(base, **changes)


def config(root: Path) -> model_config_pb2.ModelConfig:
    found = model_config_pb2.ModelConfig()
    text_format.Parse((root / "late" / "config.pbtxt").read_text(), found)
    return found


def test_it_promises_what_the_variants_share(root):
    (one,) = write([model(root)], root)
    assert (one.made, one.folder) == ("made", root / "late")
    found = config(root)
    assert [tensor.name for tensor in found.input] == ["IN", CONTROL]
    assert [tensor.optional for tensor in found.input] == [False, True]
    assert [tensor.name for tensor in found.output] == ["OUT", REPORT]
    assert found.parameters["first"].string_value == "f", "of the least quality until told more"
    assert found.parameters["client_max_batch"].string_value == "4"
    assert [(g.count, g.kind) for g in found.instance_group] == [(1, 2)], "one queue, on the host"
    code = {path.name for path in (root / "late" / "1").iterdir()}
    assert code == {"model.py", "dispatch", "key", "__pycache__"}
    package = Path(shape.__file__).parents[1] / "dispatch"
    within = {path.name for path in (root / "late" / "1" / "dispatch").iterdir()}
    assert within == {path.name for path in package.glob("*.py")} | {"__pycache__"}
    for folder in ("1", "1/dispatch"):
        told = root / "late" / folder / "__pycache__"
        assert told.is_file(), "no place for Python to write to"


def test_its_key_is_one_that_few_may_read(root):
    list(write([model(root)], root))
    key = root.parent / "secrets" / "key"
    assert len(key.read_bytes().strip()) == 64
    assert (root / "late" / "1" / "key").read_bytes() == key.read_bytes().strip()
    for path in (key, root / "late" / "1" / "key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_is_right_stays_and_what_is_not_is_made_anew(root):
    list(write([model(root)], root))
    before = (root / "late").stat().st_mtime_ns
    assert [one.made for one in write([model(root)], root)] == ["unchanged"]
    assert (root / "late").stat().st_mtime_ns == before
    changed = model(root, client_max_batch=2)
    assert [one.made for one in write([changed], root, dry_run=True)] == ["renewed"]
    assert config(root).parameters["client_max_batch"].string_value == "4"
    assert [one.made for one in write([changed], root)] == ["renewed"]
    assert config(root).parameters["client_max_batch"].string_value == "2"
    assert sorted(path.name for path in root.iterdir()) == ["b", "f", "late"]


def test_a_folder_of_somebody_else_is_left_alone(root):
    variant(root, "late")
    assert [one.made for one in write([model(root)], root)] == ["theirs"]
    assert not (root / "late" / "1").exists()
    assert not (root.parent / "secrets").exists()


def test_a_dry_run_writes_nothing(root):
    assert [one.made for one in write([model(root)], root, dry_run=True)] == ["made"]
    assert sorted(path.name for path in root.parent.iterdir()) == ["models"]


@pytest.mark.parametrize(
    ("most", "more", "words"),
    [
        (0, "", "does not batch"),
        (8, "model_transaction_policy { decoupled: true }", "streams"),
        (8, 'input { name: "TOO" data_type: TYPE_FP32 dims: [ 1 ] }', "TOO"),
        (8, "sequence_batching { }", "sequences"),
        (8, "nonsense", "config.pbtxt"),
    ],
)
def test_a_variant_that_cannot_be_bound_late_is_told(root, most, more, words):
    variant(root, "odd", most=most, more=more)
    odd = (*model(root).variants, VariantPolicy("odd", "odd", 0.5))
    with pytest.raises(DispatcherError, match=words):
        list(write([model(root, variants=odd)], root))
    assert sorted(path.name for path in root.parent.iterdir()) == ["models"], "nor a key"


def test_a_repository_that_is_none_and_a_short_key_are_told(root):
    with pytest.raises(DispatcherError, match="--repository"):
        list(write([model(root)], root.parent))
    (root.parent / "secrets").mkdir()
    (root.parent / "secrets" / "key").write_text("short")
    with pytest.raises(DispatcherError, match="16 bytes"):
        list(write([model(root)], root))


def test_the_command_says_what_it_did(root, capsys):
    policy = {
        "version": 1,
        "triton": {"grpc": "127.0.0.1:8001"},
        "models": {
            "chat": {
                "objective": {"latency": "100ms", "percentile": 99},
                "dispatcher": {"model": "late", "key_file": str(root.parent / "key")},
                "variants": {
                    "best": {"model": "b", "quality": 0.9},
                    "fast": {"model": "f", "quality": 0.8},
                },
            }
        },
    }
    path = root.parent / "policy.yaml"
    path.write_text(yaml.safe_dump(policy))
    words = ["dispatcher", "write", str(path), "--repository", str(root)]
    assert main([*words, "--dry-run"]) == 0
    assert "would be made" in capsys.readouterr().out
    assert main(words) == 0
    assert "late made" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert '"unchanged"' in capsys.readouterr().out
    (root / "b" / "config.pbtxt").unlink()
    assert main(words) == 1
    assert "config.pbtxt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["choice.py", "late_binding.py", "pace.py", "plan.py", "signed.py", "server/model.py"],
)
def test_what_runs_in_triton_needs_no_new_python_and_nothing_of_ours(name):
    path = Path(shape.__file__).parents[1] / "dispatch" / name
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported = {
        word.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for word in (
            [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert "controller" not in imported
    matches = [node for node in ast.walk(tree) if isinstance(node, ast.Match)]
    assert matches == []
