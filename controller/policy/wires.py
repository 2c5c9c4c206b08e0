"""The sections of a policy that are about wires: Triton, MQTT, Prometheus, and their TLS.

Owns what a single value of them may be; the others are in `controller.policy.sections`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from controller.policy import model as policy
from controller.policy import values
from controller.policy.sections import HostPort, Name, Section

_MQTT = policy.MqttPolicy(host="localhost")

SecretFile = Annotated[str, values.SECRET_FILE]


class TracesSection(Section):
    """Where the governor receives Triton's traces."""

    listen: HostPort = Field(
        description="host:port of the governor's OTLP/HTTP receiver, the address that Triton's "
        "`--trace-config opentelemetry,url=http://HOST:PORT/v1/traces` names."
    )


class TlsSection(Section):
    """Whom to believe that he is the server, and who the governor is to him; PEM files."""

    ca_file: SecretFile = Field(
        description="Certificates of the authorities that may have signed the server's."
    )
    cert_file: SecretFile | None = Field(
        default=None,
        description="The governor's own certificate and those between it and an authority. "
        "Omitted: it does not say who it is.",
    )
    key_file: SecretFile | None = Field(
        default=None, description="The private key of cert_file, without a passphrase."
    )
    server_name: Annotated[str, values.HOST] | None = Field(
        default=None,
        description="The name in the server's certificate. Omitted: the host that is called.",
    )


class TritonSection(Section):
    """Where the server is and how to talk to it."""

    grpc: HostPort = Field(
        description="host:port of Triton's gRPC endpoint: model control, statistics, probes."
    )
    metrics: Annotated[str, values.HTTP_URL] | None = Field(
        default=None,
        description="URL of Triton's metrics page. Without it nothing tells what waits.",
    )
    traces: TracesSection | None = Field(
        default=None,
        description="Receiver of Triton's traces. Without it there are only mean latencies: "
        "attainment is unknown and margins are wider.",
    )
    restricted_key_file: SecretFile | None = Field(
        default=None,
        description="File that holds the secret of Triton's --grpc-restricted-protocol; or "
        "credential:NAME, given to the service by systemd's LoadCredential=.",
    )
    restricted_key_name: Name = Field(
        default="admin-key",
        description="Name of the key in Triton's --grpc-restricted-protocol=...:NAME=SECRET.",
    )
    tls: TlsSection | None = Field(
        default=None,
        description="TLS for gRPC, for a Triton started with --grpc-use-ssl; with cert_file and "
        "key_file for one with --grpc-use-ssl-mutual, too. Omitted: no TLS.",
    )
    metrics_tls: TlsSection | None = Field(
        default=None,
        description="The same for a metrics page at an https URL. Omitted: the authorities that "
        "the system trusts.",
    )


class PrometheusSection(Section):
    """Where Prometheus scrapes the governor."""

    listen: HostPort = Field(
        description="host:port of the metrics page, /metrics. Nobody is asked who he is there: "
        "keep it on loopback, or behind what asks."
    )


class MqttSection(Section):
    """The bus for fleets. There is none unless this names a broker."""

    host: Annotated[str, values.HOST] = Field(description="The broker's host name or address.")
    port: int = Field(
        default=_MQTT.port,
        ge=1,
        le=65_535,
        description="The broker's port; brokers with TLS usually listen on 8883.",
    )
    node: Annotated[str, values.NAME] | None = Field(
        default=None,
        description="This machine's name in topics. Omitted: its host name.",
    )
    topic_prefix: Annotated[str, values.TOPIC_PREFIX] = Field(
        default=_MQTT.topic_prefix,
        description="What all topics start with.",
    )
    username: Annotated[str, values.TEXT] | None = Field(
        default=None, description="User name at the broker."
    )
    password_file: SecretFile | None = Field(
        default=None,
        description="File that holds the password at the broker; or credential:NAME.",
    )
    tls_ca_file: SecretFile | None = Field(
        default=None,
        description="Certificate authority of the broker, PEM; a path or credential:NAME. "
        "Omitted: no TLS.",
    )
    tls_cert_file: SecretFile | None = Field(
        default=None, description="The governor's own certificate for the broker, PEM."
    )
    tls_key_file: SecretFile | None = Field(
        default=None, description="The private key of tls_cert_file, without a passphrase."
    )
