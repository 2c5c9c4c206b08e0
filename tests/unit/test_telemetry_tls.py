"""The files of TLS: what is wrong with them, said of the key that names the file."""

import asyncio
import os
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Authority, write_strangers

from controller.policy.load import parse_policy
from controller.policy.model import TlsPolicy, TritonPolicy
from controller.telemetry.handshake import explain_refusal
from controller.telemetry.tls import TlsError, marks, own_end_s, read_credentials


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    authority.issue("us", "governor.example")
    authority.issue("other", "other.example")
    authority.issue_expired("old", "127.0.0.1")
    write_strangers(authority.folder, "stranger", "127.0.0.1")
    encrypted = authority.folder / "encrypted.key"
    encrypted.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n")
    (authority.folder / "empty.pem").write_bytes(b"")
    return authority


@pytest.fixture
def policy(authority) -> TlsPolicy:
    return TlsPolicy(str(authority.file), **authority.files("us"))


def problem(policy: TlsPolicy) -> str:
    with pytest.raises(TlsError) as caught:
        read_credentials(policy)
    text = str(caught.value)
    assert "PRIVATE KEY" not in text
    return text


def test_files_that_fit_are_taken_as_they_are(policy):
    found = read_credentials(policy)
    assert found.authorities == Path(policy.ca_file).read_bytes()
    assert found.key == Path(policy.key_file).read_bytes()
    assert "PRIVATE KEY" not in repr(found)


@pytest.mark.parametrize(
    ("key", "name", "expected"),
    [
        ("ca_file", "none.pem", "triton.tls.ca_file: {file} cannot be read: No such file"),
        ("ca_file", "", "triton.tls.ca_file: {file} cannot be read: Is a directory"),
        ("ca_file", "empty.pem", "triton.tls.ca_file: {file} holds no PEM certificates"),
        ("cert_file", "none.pem", "triton.tls.cert_file: {file} cannot be read: No such file"),
        ("cert_file", "empty.pem", "triton.tls.cert_file: {file} holds no PEM certificate"),
        ("key_file", "none.key", "triton.tls.key_file: {file} cannot be read: No such file"),
        ("key_file", "empty.pem", "triton.tls.key_file: {file} holds no PEM private key"),
        ("key_file", "other.key", "triton.tls.key_file: {file} is not the private key of"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_by_key_and_path(authority, policy, key, name, expected):
    file = authority.folder / name
    text = problem(replace(policy, **{key: str(file)}))
    assert expected.format(file=file) in text


def test_a_certificate_of_ours_that_is_over_is_not_sent_at_all(authority, policy):
    assert "ended" in problem(replace(policy, **authority.files("old")))


def test_a_key_with_a_passphrase_asks_nobody_on_the_terminal(authority, policy, tmp_path):
    from cryptography.hazmat.primitives import serialization

    plain = serialization.load_pem_private_key(Path(policy.key_file).read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    text = problem(replace(policy, key_file=str(locked)))
    assert "is encrypted: store it without a passphrase" in text


def test_an_endless_file_is_not_read_to_its_end(policy, tmp_path):
    assert "not a regular file" in problem(replace(policy, ca_file="/dev/zero"))
    huge = tmp_path / "huge.pem"
    with huge.open("wb") as stream:
        stream.truncate(1 << 40)
    assert "longer than 1024 KiB" in problem(replace(policy, ca_file=str(huge)))


def test_a_pipe_that_nobody_writes_to_holds_nobody_up(policy, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in problem(replace(policy, key_file=str(pipe)))


def test_the_place_in_the_policy_is_told(tmp_path):
    text = (
        "version: 1\n"
        "triton:\n"
        "  grpc: 127.0.0.1:8001\n"
        f"  tls: {{ca_file: {tmp_path}/none.pem}}\n"
        "models:\n"
        "  digits:\n"
        "    objective: {latency: 60ms, percentile: 99}\n"
        "    variants: {wide: {model: digits_wide, quality: 0.9}}\n"
    )
    tls = parse_policy(text, "p.yaml").triton.tls
    assert problem(tls).startswith("p.yaml:4:18: triton.tls.ca_file: ")
    moved = parse_policy(f"# a comment\n{text}", "p.yaml").triton.tls
    assert moved == tls  # nobody has to connect anew for that
    assert problem(moved).startswith("p.yaml:5:18: ")


def test_the_end_of_our_certificate_is_known(authority, policy):
    ends_s = own_end_s(policy)
    assert ends_s is not None
    assert ends_s > 4e9
    assert own_end_s(replace(policy, cert_file=None, key_file=None)) is None


def test_a_renewed_file_has_another_mark(authority, policy):
    before = marks(policy)
    assert marks(policy) == before
    authority.issue("us", "governor.example")
    assert marks(policy) != before


async def explained(authority: Authority, name: str | None, tls: TlsPolicy | None) -> str | None:
    """What is told of a server with a certificate; None: it does not speak TLS."""
    context = None
    if name is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.files(name).values())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        return await explain_refusal(TritonPolicy(f"127.0.0.1:{port}", None, None, tls=tls))
    finally:
        server.close()


async def test_a_server_whose_certificate_is_over_is_told_so(authority):
    text = await explained(authority, "old", TlsPolicy(str(authority.file)))
    assert text is not None
    assert "is out of its time (certificate has expired)" in text


async def test_a_stranger_is_not_believed(authority):
    text = await explained(authority, "stranger", TlsPolicy(str(authority.file)))
    assert text is not None
    assert "does not vouch for the certificate" in text


async def test_a_server_without_tls_is_told_so(authority):
    text = await explained(authority, None, TlsPolicy(str(authority.file)))
    assert text is not None
    assert "does not speak TLS" in text


async def test_nothing_is_made_up_where_nothing_was_found(authority):
    assert await explained(authority, None, None) is None
    nobody = TritonPolicy("127.0.0.1:1", None, None, tls=TlsPolicy(str(authority.file)))
    assert await explain_refusal(nobody) is None
