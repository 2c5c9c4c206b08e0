"""Certificates for a test: an authority, and files in a folder as operators have them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

DAY = timedelta(days=1)
OTHER = trustme.CA()  # nobody's


class Authority:
    """One certificate authority; what it signs lies in a folder as NAME.pem and NAME.key."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *identities: str, **settings: Any) -> None:
        """Write a certificate and its key, as a renewal does: each file replaced in one step."""
        write(self.folder / name, self._ca.issue_cert(*identities, **settings))

    def issue_expired(self, name: str, *identities: str) -> None:
        """Write one that ended yesterday."""
        now = datetime.now(UTC)
        self.issue(name, *identities, not_before=now - 3 * DAY, not_after=now - DAY)

    def issue_brief(self, name: str, *identities: str) -> None:
        """Write one that ends in three days."""
        now = datetime.now(UTC)
        self.issue(name, *identities, not_before=now - DAY, not_after=now + 3 * DAY)

    def mix_up(self, name: str, other: str) -> None:
        """Put the key of another certificate beside a certificate."""
        put(self.folder / f"{name}.key", (self.folder / f"{other}.key").read_bytes())

    def files(self, name: str) -> dict[str, str]:
        """The two files of a certificate under the policy's keys."""
        return {
            "cert_file": str(self.folder / f"{name}.pem"),
            "key_file": str(self.folder / f"{name}.key"),
        }


def write(stem: Path, issued: trustme.LeafCert) -> None:
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    for suffix, content in ((".key", issued.private_key_pem.bytes()), (".pem", chain)):
        put(stem.with_suffix(suffix), content)


def put(path: Path, content: bytes) -> None:
    """Put a file in the place of another, in one step."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(content)
    fresh.chmod(0o600)
    fresh.replace(path)


def write_strangers(folder: Path, name: str, *identities: str) -> None:
    """Write a certificate of an authority that nobody trusts, and that authority."""
    write(folder / name, OTHER.issue_cert(*identities))
    OTHER.cert_pem.write_to_path(str(folder / "stranger_ca.pem"))
