"""Which traced requests are ours."""

from typing import cast

from controller.actuation.actuator import Actuator
from controller.actuation.client import Proof
from controller.daemon.proofs import Proofs
from controller.telemetry.observation import RequestSample


class Sender:
    """The one call of the actuator that is used."""

    def __init__(self) -> None:
        self.sent: list[Proof] = []

    def proofs(self) -> tuple[Proof, ...]:
        sent, self.sent = tuple(self.sent), []
        return sent


def traced(start_s: float, alias: str = "chat") -> RequestSample:
    return RequestSample(alias, "big", start_s, 0.03)


def test_a_proof_through_an_alias_is_told_once_and_its_trace_is_left_out():
    sender = Sender()
    proofs = Proofs(cast("Actuator", sender))
    sender.sent = [Proof("chat", "big", 10.0)]
    assert proofs.take(10.02) == ("big",)
    assert proofs.take(10.04) == ()
    seen = [traced(9.5), traced(10.001), traced(10.5)]
    assert [sample.start_s for sample in proofs.clients(seen)] == [9.5, 10.5]
    assert proofs.clients([traced(10.002)]) == (traced(10.002),)  # it has had its one


def test_another_alias_and_another_time_are_clients():
    sender = Sender()
    proofs = Proofs(cast("Actuator", sender))
    sender.sent = [Proof("chat", "big", 10.0), Proof("small", "small", 10.0)]
    proofs.take(10.02)
    others = (traced(10.0, "vision"), traced(10.3), traced(9.9))
    assert proofs.clients(others) == others


def test_a_proof_without_a_trace_is_forgotten():
    sender = Sender()
    proofs = Proofs(cast("Actuator", sender))
    for second in range(1000):
        sender.sent = [Proof("chat", "big", float(second))]
        proofs.take(second + 0.1)
    assert proofs.clients([traced(1.0)]) == (traced(1.0),)
    assert len(proofs._sent) <= 11
