"""The doctor against a real server: what it sees, and that it changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc
from repository import Tensor, write_alias, write_model

from controller.doctor.examine import examine
from controller.doctor.finding import Finding, Level
from controller.embedded.server import RunningServer
from controller.policy.model import (
    AliasKind,
    GpuPolicy,
    GpuSource,
    JournalPolicy,
    ModelPolicy,
    Objective,
    Policy,
    TritonPolicy,
    VariantPolicy,
)

LISTEN = "127.0.0.1:1"  # never bound: the doctor is told that a governor runs


def a_model(name: str, *variants: str, **changes: object) -> ModelPolicy:
    return ModelPolicy(
        name,
        Objective(0.060, 99.0),
        tuple(VariantPolicy(v, v, 0.9 - i / 100) for i, v in enumerate(variants)),
        **{"client_max_batch": 8, **changes},
    )


async def findings(
    server: RunningServer,
    tmp_path: Path,
    *models: ModelPolicy,
    key_file: str | None = None,
    fresh_age_s: dict[str, float] | None = None,
) -> dict[str, list[Finding]]:
    policy = Policy(
        TritonPolicy(
            f"127.0.0.1:{server.ports.grpc}",
            f"http://127.0.0.1:{server.ports.metrics}/metrics",
            LISTEN,
            restricted_key_file=key_file,
        ),
        models,
        gpu=GpuPolicy(GpuSource.NONE),
        journal=JournalPolicy(str(tmp_path / "journal.sqlite3"), 2**20),
    )
    by_name: dict[str, list[Finding]] = {}
    for finding in await examine(
        policy, tmp_path / "governor.sock", governor_runs=True, fresh_age_s=fresh_age_s
    ):
        by_name.setdefault(finding.name, []).append(finding)
    return by_name


def levels(found: dict[str, list[Finding]], name: str) -> list[Level]:
    return [finding.level for finding in found[name]]


def messages(found: dict[str, list[Finding]], name: str) -> str:
    return " ".join(finding.message for finding in found[name])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor") / "repository"


@pytest.fixture(scope="module")
def server(start_triton: Callable[..., RunningServer], root: Path) -> RunningServer:
    write_model(root, "good", tag=1)
    write_model(root, "also_good", tag=2)
    write_model(root, "narrow_batch", tag=3, max_batch_size=2)
    write_model(root, "other_tensors", tag=4, inputs=[Tensor("ELSE")])
    write_model(root, "cached", tag=5, extra={"response_cache": {"enable": True}})
    write_model(root, "idle", tag=6)
    write_alias(root, "echo", "good")
    loaded = ["good", "also_good", "narrow_batch", "other_tensors", "cached", "echo"]
    return start_triton(root, otlp_url=f"http://{LISTEN}/v1/traces", load_models=loaded)


async def test_a_server_as_it_should_be_has_no_failure(
    server: RunningServer, tmp_path: Path
) -> None:
    found = await findings(
        server, tmp_path, a_model("echo", "good", "also_good", alias=AliasKind.REPOSITORY)
    )
    assert not [f for group in found.values() for f in group if f.level is Level.FAIL]
    assert levels(found, "triton") == [Level.WARN]  # 2.51 is older than the fixes of 25.07
    assert "25.07" in messages(found, "triton")
    assert levels(found, "model control") == [Level.OK]
    assert levels(found, "restricted API") == [Level.WARN]
    assert levels(found, "traces") == [Level.OK]
    assert levels(found, "metrics") == [Level.OK]
    assert levels(found, "listening") == [Level.OK]
    assert levels(found, "variant echo/good") == [Level.OK]
    assert levels(found, "model echo") == [Level.OK]
    assert "it points at good" in messages(found, "alias echo")


async def test_nothing_changes_on_the_server(server: RunningServer, tmp_path: Path) -> None:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}")

    def state() -> str:
        models = client.get_model_repository_index().models
        return str(sorted(str(model) for model in models)) + str(client.get_trace_settings())

    before = state()
    await findings(server, tmp_path, a_model("echo", "good", "idle"))
    assert state() == before
    client.close()


async def test_variants_that_cannot_serve_are_named(server: RunningServer, tmp_path: Path) -> None:
    found = await findings(
        server,
        tmp_path,
        a_model("m", "good", "absent", "idle", "narrow_batch", "other_tensors", "cached"),
    )
    assert "is not in Triton's model repository" in messages(found, "variant m/absent")
    assert levels(found, "variant m/idle") == [Level.WARN]
    assert "promises 8" in messages(found, "variant m/narrow_batch")
    assert Level.FAIL in levels(found, "variant m/cached")
    assert Level.FAIL in levels(found, "model m")
    assert "ELSE" in messages(found, "model m") or "other_tensors" in messages(found, "model m")


async def test_aliases_that_are_not_as_the_policy_says_are_named(
    server: RunningServer, tmp_path: Path
) -> None:
    found = await findings(
        server,
        tmp_path,
        a_model("nowhere", "good", alias=AliasKind.REPOSITORY),
        a_model("echo", "also_good"),
        a_model("good", "also_good"),
        a_model("fresh", "good"),
    )
    assert levels(found, "alias nowhere") == [Level.FAIL]
    assert "none of the policy's variants" in messages(found, "alias echo")
    assert "a model named good is loaded" in messages(found, "alias good")
    assert levels(found, "alias fresh") == [Level.OK]


async def test_restricted_model_control_is_seen_with_and_without_the_key(
    start_triton: Callable[..., RunningServer], repository: Path, tmp_path: Path
) -> None:
    apis = "model-repository,model-config,trace,statistics"
    server = start_triton(
        repository, extra_args=[f"--grpc-restricted-protocol={apis}:admin-key=secret"]
    )
    without = await findings(server, tmp_path)
    assert levels(without, "model control") == [Level.FAIL]
    assert "restricted_key_file" in str(without["model control"][0].advice)
    key = tmp_path / "key"
    key.write_text("secret\n")
    with_key = await findings(server, tmp_path, key_file=str(key))
    assert levels(with_key, "model control") == [Level.OK]
    assert levels(with_key, "restricted API") == [Level.OK]
    assert levels(with_key, "traces") == [Level.WARN]  # started without an OTLP URL
    key.write_text("wrong\n")
    wrong = await findings(server, tmp_path, key_file=str(key))
    assert levels(wrong, "model control") == [Level.FAIL]
    assert "correct the key" in str(wrong["model control"][0].advice)
    key.unlink()
    assert "cannot read the key" in messages(
        await findings(server, tmp_path, key_file=str(key)), "triton"
    )


async def test_a_server_without_model_control_is_told_how_to_start(
    start_triton: Callable[..., RunningServer], repository: Path, tmp_path: Path
) -> None:
    server = start_triton(repository, extra_args=["--model-control-mode=none"])
    found = await findings(server, tmp_path)
    assert levels(found, "model control") == [Level.FAIL]
    assert "--model-control-mode=explicit" in str(found["model control"][0].advice)


async def test_files_that_changed_since_a_load_are_seen(
    server: RunningServer, root: Path, tmp_path: Path
) -> None:
    model = a_model("echo", "good", "also_good")
    found = await findings(server, tmp_path, model)
    assert levels(found, "model folders") == [Level.OK]
    file = root / "also_good" / "1" / "model.py"
    before, folder = file.stat(), file.parent.parent.stat()
    os.utime(file)
    try:
        found = await findings(server, tmp_path, model)
        assert levels(found, "model folders") == [Level.WARN]
        assert "files of also_good changed" in messages(found, "model folders")
        # A governor knows better than the server's age.
        found = await findings(server, tmp_path, model, fresh_age_s={"also_good": 0.0})
        assert levels(found, "model folders") == [Level.OK]
        found = await findings(server, tmp_path, model, fresh_age_s={"also_good": 60.0})
        assert "the governor last saw" in messages(found, "model folders")
        # What is moved into place keeps its own time, and changes the folder's.
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.utime(file.parent.parent)
        found = await findings(server, tmp_path, model)
        assert levels(found, "model folders") == [Level.WARN]
        os.utime(file.parent.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
        dangling = file.with_name("dangling")
        dangling.symlink_to("nowhere")
        found = await findings(server, tmp_path, model, fresh_age_s={"also_good": 60.0})
        assert "also_good" in messages(found, "model folders")
        dangling.unlink()
    finally:
        os.utime(file.parent.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
