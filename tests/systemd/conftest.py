"""One booted machine for all tests of the service."""

from collections.abc import Iterator

import pytest
from machine import Machine, boot


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with boot(tmp_path_factory.mktemp("machine")) as machine:
        yield machine
