"""What is allowed in a policy, and less safe than it looks.

Owns who else could read or write what the policy opens. It must not read files; `policy check` and
the doctor tell it, and neither refuses a policy for it.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Iterator

from controller.policy.findings import Finding
from controller.policy.model import Policy
from controller.policy.positions import Document
from controller.policy.problems import Problem


def cautions(policy: Policy) -> Iterator[Finding]:
    """Yield what an operator should know of a policy that is valid."""
    triton, mqtt = policy.triton, policy.mqtt
    if triton.traces_listen is not None and not is_loopback(triton.traces_listen):
        yield Finding(
            ("triton", "traces", "listen"),
            "is open to the network, without TLS or a login: whoever reaches it can pretend "
            "latencies; keep it on loopback, or let a firewall pass Triton alone",
        )
    if policy.prometheus is not None and not is_loopback(policy.prometheus.listen):
        yield Finding(
            ("prometheus", "listen"),
            "is open to the network, without TLS or a login: whoever reaches it reads names, rates "
            "and latencies; keep it on loopback behind a proxy that asks, or let a firewall pass "
            "Prometheus alone",
        )
    if triton.tls is None and not is_loopback(triton.grpc):
        key = " and the restricted key" if triton.restricted_key_file is not None else ""
        yield Finding(
            ("triton", "grpc"),
            f"is on another machine and there is no triton.tls: model control{key} can be read "
            "and changed on the way",
        )
    url = urllib.parse.urlsplit(triton.metrics_url or "")
    if url.username is not None or url.password is not None:
        yield Finding(
            ("triton", "metrics"),
            "has a password in it, which whoever may read the policy sees",
        )
    if mqtt is not None and mqtt.tls_ca_file is None and not _is_loopback_host(mqtt.host):
        secret = " and the password" if mqtt.password_file is not None else ""
        yield Finding(
            ("mqtt", "host"),
            f"is on another machine and there is no tls_ca_file: commands{secret} can be read and "
            "changed on the way",
        )


def located(policy: Policy, document: Document) -> list[Problem]:
    """Return the cautions of the policy that a document says, with their positions."""
    found = [document.problem(one.path, one.message, at_key=one.at_key) for one in cautions(policy)]
    return sorted(found, key=lambda problem: (problem.line, problem.column))


def is_loopback(address: str) -> bool:
    """Return whether a `host:port` is this machine's alone."""
    return _is_loopback_host(address.rpartition(":")[0].strip("[]"))


def _is_loopback_host(host: str) -> bool:
    return host == "localhost" or is_loopback_ip(host)


def is_loopback_ip(text: str) -> bool:
    """Return whether a text is an address of this machine's alone."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
