"""Secrets that a policy names as credentials of the service manager."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.interfaces.mqtt_connection import BusError, _password
from controller.policy.credentials import CredentialError, secret_file
from controller.policy.load import PolicyError, load_policy
from controller.policy.model import TritonPolicy
from controller.telemetry.channel import KeyFileError, read_headers

POLICY = """\
version: 1
triton:
  grpc: 127.0.0.1:8001
  restricted_key_file: credential:triton-key
models:
  m:
    objective: {latency: 60ms, percentile: 99}
    variants: {a: {model: m_a, quality: 0.9}}
mqtt: {host: b, username: u, password_file: "credential:mqtt"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "given").mkdir()
    return tmp_path / "policy.yaml"


def test_a_path_stays_a_path() -> None:
    assert secret_file("/etc/key", {}) == Path("/etc/key")


def test_a_credential_is_a_file_of_the_service_manager_s_folder(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    assert secret_file("credential:key", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == (
        tmp_path / "key"
    )


def test_without_a_service_manager_it_is_told_what_to_do() -> None:
    with pytest.raises(CredentialError, match="LoadCredential=key:"):
        secret_file("credential:key", {})


def test_one_that_was_not_given_is_told_beside_those_that_were(tmp_path: Path) -> None:
    (tmp_path / "kye").write_text("s3cret")
    with pytest.raises(CredentialError, match="there are: kye") as caught:
        secret_file("credential:key", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "s3cret" not in str(caught.value)


def test_a_process_that_needs_them_is_told_line_and_column(file: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policy(file, environment={"CREDENTIALS_DIRECTORY": str(file.parent / "given")})
    first, second = str(caught.value).splitlines()
    assert f"{file}:4:24: triton.restricted_key_file: no credential 'triton-key'" in first
    assert f"{file}:9:45: mqtt.password_file: no credential 'mqtt'" in second


def test_it_is_taken_with_them_and_checked_by_others_without(file: Path) -> None:
    for name in ("triton-key", "mqtt"):
        (file.parent / "given" / name).write_text("s3cret")
    environment = {"CREDENTIALS_DIRECTORY": str(file.parent / "given")}
    for policy in (load_policy(file, environment=environment), load_policy(file)):
        assert policy.triton.restricted_key_file == "credential:triton-key"


@pytest.mark.parametrize(
    "named", ["credential:", "credential:a/b", "credential:..", "${CREDENTIALS_DIRECTORY}/key"]
)
def test_what_is_neither_is_refused(named: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.replace("credential:triton-key", f'"{named}"'))
    with pytest.raises(PolicyError, match=r"policy\.yaml:4:24.*credential:NAME"):
        load_policy(file)


def test_those_who_need_the_secret_read_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    policy = TritonPolicy("127.0.0.1:8001", None, None, restricted_key_file="credential:key")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(
        KeyFileError, match=r"triton\.restricted_key_file: this process was given no"
    ):
        read_headers(policy)
    with pytest.raises(BusError, match=r"mqtt\.password_file: this process"):
        _password("credential:key")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert list(read_headers(policy).values()) == ["s3cret"]
    assert _password("credential:key") == "s3cret"
