"""Several files, and the parts for some hosts, as one document.

Owns what `include` and `hosts` mean, and reading the files that are included: plain ones, within
bounds. It must not know what else a policy may say.

Mappings merge by key; anything else is replaced. What comes later wins: the included files in
their order, then the file itself, then those entries of `hosts` that match, in their order. A key
that is there already is removed by null. Every value keeps the place where it was written.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Final

from controller.policy.positions import MAX_BYTES, MAX_NODES, Data, Document, Position, read_yaml
from controller.policy.problems import Path, Problem, quoted

MAX_FILES: Final = 32
MAX_CHAIN: Final = 8  # of files that include each other
COMPOSING: Final = ("include", "hosts")  # the keys of this module; they stand at the top
HOST_PATTERN: Final = r"[A-Za-z0-9_.*?!\[\]-]{1,253}"
_WILD: Final = re.compile(r"[*?\[]")

Mark = tuple[int, int, int, int]  # what tells one content of a file from another
Seen = MutableMapping[str, Mark | None]  # every file that was looked for; None: it is not there


def mark_of(found: os.stat_result) -> Mark:
    """Return what tells one content of a file from another."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class HostPart:
    """What one entry of `hosts` says."""

    pattern: str
    path: Path  # of the entry, in its file
    document: Document

    @property
    def is_name(self) -> bool:
        """Return whether it names one host, and is no pattern."""
        return _WILD.search(self.pattern) is None

    def matches(self, host: str) -> bool:
        """Return whether it is for a host; case does not count, as in names of hosts."""
        return fnmatch.fnmatchcase(host.lower(), self.pattern.lower())


@dataclass(slots=True)
class Composed:
    """What some files say together, the parts for hosts beside it."""

    document: Document
    parts: list[HostPart] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # in the order they were read
    digest: str = ""  # SHA-256 of all texts

    def of(self, host: str) -> Document:
        """Return what holds for one host."""
        return self._under([part for part in self.parts if part.matches(host)])

    def of_part(self, part: HostPart) -> Document:
        """Return what would hold where one part alone is added."""
        return self._under([part])

    def _under(self, parts: list[HostPart]) -> Document:
        if not parts:
            return self.document
        merged = _empty(self.document)
        _merge(merged, self.document, ())
        for part in parts:
            _merge(merged, part.document, part.path)
        return merged

    def sha256(self, host: str) -> str:
        """Return what tells this policy from another: of all texts, and the host's name."""
        if not self.parts:
            return self.digest
        return hashlib.sha256(f"{self.digest} {host}".encode("utf-8", "surrogatepass")).hexdigest()


def compose(text: str, filename: str, *, folder: str | None, seen: Seen | None = None) -> Composed:
    """Return what a text says with all that it includes; all problems are in the document.

    Args:
        text: of the file.
        filename: for messages.
        folder: that includes are relative to; None: the text is from no file and has none.
        seen: takes note of the included files.
    """
    return _Reading({} if seen is None else seen).compose(text, filename, folder)


class _RefusedError(Exception):
    """A file that is not included; the text says why."""


class _Reading:
    """Reads one file and all that it includes."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._bytes = 0
        self._nodes = 0
        self._tried = 0
        self._texts: list[str] = []
        self._composed = Composed(Document(""))

    def compose(self, text: str, filename: str, folder: str | None) -> Composed:
        self._bytes = len(text.encode("utf-8", "surrogatepass"))
        own = self._parse(text, filename)
        chain = () if folder is None else (_identity(filename),)
        self._composed.document = self._resolve(own, folder, chain)
        self._composed.digest = _digest(self._texts)
        return self._composed

    def _parse(self, text: str, filename: str) -> Document:
        document = read_yaml(text, filename)
        self._texts.append(text)
        self._composed.files.append(filename)
        self._nodes += len(document.values) + len(document.keys)
        return document

    def _resolve(self, own: Document, folder: str | None, chain: tuple[object, ...]) -> Document:
        """Return a document with what it includes; itself where it composes nothing."""
        if not isinstance(own.data, dict) or not any(key in own.data for key in COMPOSING):
            return own
        merged = _empty(own)
        for path, name in self._names(own, folder):
            try:
                included = self._included(name, folder or "", chain)
            except _RefusedError as error:
                _refuse(own, path, str(error))
            else:
                _merge(merged, included, ())
                merged.problems += included.problems
                merged.complete = merged.complete and included.complete
        merged.complete = merged.complete and own.complete
        self._composed.parts += self._parts(own)
        _merge(merged, own, ())
        merged.problems += own.problems
        return merged

    def _names(self, own: Document, folder: str | None) -> Iterator[tuple[Path, str]]:
        """Yield the files that a document includes, and where it says so."""
        root = own.data
        if not isinstance(root, dict) or "include" not in root:
            return
        names = root["include"]
        if folder is None:
            _refuse(own, ("include",), "only a file can include others: there is no folder here")
            return
        if not isinstance(names, list) or not names:
            _refuse(own, ("include",), "must be a list of files such as [base.yaml]")
            return
        for at, name in enumerate(names):
            if not isinstance(name, str) or not name or not name.isprintable():
                _refuse(own, ("include", at), "must be the name of a file, relative to this one")
            elif name.startswith("/"):
                _refuse(own, ("include", at), "must be relative to this file, no absolute path")
            else:
                yield ("include", at), name

    def _included(self, name: str, folder: str, chain: tuple[object, ...]) -> Document:
        """Return what an included file says, its own includes in it. Raises _RefusedError."""
        self._tried += 1
        path = str(pathlib.Path(folder) / name)
        if self._tried >= MAX_FILES:
            raise _RefusedError(f"more than {MAX_FILES} files together")
        if len(chain) >= MAX_CHAIN:
            raise _RefusedError(f"files that include each other are more than {MAX_CHAIN} deep")
        try:
            raw, identity = self._read(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise _RefusedError(f"{quoted(name)} cannot be read: {reason}") from error
        if identity in chain:
            raise _RefusedError(f"{quoted(name)} is this file, or includes it: a circle")
        self._bytes += len(raw)
        if self._bytes > MAX_BYTES:
            raise _RefusedError(f"all files together are larger than {MAX_BYTES // 1024} KiB")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            byte = f"byte 0x{raw[error.start]:02X} in line {line}"
            raise _RefusedError(f"{quoted(name)}: {byte} is not UTF-8: save it so") from error
        document = self._parse(text, path)
        if self._nodes > MAX_NODES:
            raise _RefusedError(f"more than {MAX_NODES} keys and values in all files together")
        return self._resolve(document, str(pathlib.Path(path).parent), (*chain, identity))

    def _read(self, name: str) -> tuple[bytes, object]:
        """Return a file's bytes, one more than may be at most, and which file it is."""
        before = self._seen.get(name, ...)
        self._seen[name] = None
        # A pipe would wait for somebody to write.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            mark = mark_of(found)
            if before in {..., mark}:  # else it changed since it was read first: read all again
                self._seen[name] = mark
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is not a plain file")
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                raw = stream.read(MAX_BYTES + 1 - min(self._bytes, MAX_BYTES))
        finally:
            os.close(descriptor)
        return raw, (found.st_dev, found.st_ino)

    def _parts(self, own: Document) -> Iterator[HostPart]:
        """Yield the entries of a document's `hosts`."""
        root = own.data
        if not isinstance(root, dict) or "hosts" not in root:
            return
        hosts = root["hosts"]
        if not isinstance(hosts, dict):
            _note(own, ("hosts",), "must be a mapping of host names, or patterns such as edge-*")
            return
        for pattern, entry in hosts.items():
            path: Path = ("hosts", pattern)
            if re.fullmatch(HOST_PATTERN, pattern) is None:
                what = "is no host name, and no pattern such as edge-* or gpu-[0-9]"
                _note(own, path, what, at_key=True)
            elif not isinstance(entry, dict):
                _note(own, path, "must be a mapping: what is different on these hosts", at_key=True)
            else:
                for key in COMPOSING:
                    if key in entry:
                        _note(own, (*path, key), f"{key} stands at the top of a file", at_key=True)
                yield HostPart(pattern, path, own)


def _refuse(document: Document, path: Path, message: str) -> None:
    """Note what is wrong with an `include`: what it lacks then is no error of its own."""
    _note(document, path, message)
    document.complete = False


def _note(document: Document, path: Path, message: str, *, at_key: bool = False) -> None:
    document.problems.append(document.problem(path, message, at_key=at_key))


def _identity(filename: str) -> object:
    try:
        found = pathlib.Path(filename).stat()
    except (OSError, ValueError):
        return filename
    return found.st_dev, found.st_ino


def _digest(texts: list[str]) -> str:
    """Return the SHA-256 of one text, or of several with their lengths."""
    raw = [text.encode("utf-8", "surrogatepass") for text in texts]
    if len(raw) == 1:
        return hashlib.sha256(raw[0]).hexdigest()
    return hashlib.sha256(b"".join(b"%d\n%b" % (len(one), one) for one in raw)).hexdigest()


def _empty(like: Document) -> Document:
    """Return a document of the same file with nothing in it."""
    empty = Document(like.file, {}, like.complete)
    if () in like.values:
        empty.values[()] = like.values[()]
    return empty


def _merge(into: Document, part: Document, origin: Path) -> None:
    """Put a part of a document over another one."""
    source: Data = part.data
    for step in origin:
        source = source[str(step)] if isinstance(source, dict) else None
    if isinstance(into.data, dict) and isinstance(source, dict):
        _merge_mapping(into, into.data, (), part, source, origin)


def _merge_mapping(
    into: Document,
    target: dict[str, Data],
    path: Path,
    part: Document,
    source: dict[str, Data],
    origin: Path,
) -> None:
    for key, value in source.items():
        if not path and key in COMPOSING:
            continue
        here, there = (*path, key), (*origin, key)
        old = target.get(key)
        if key in target and value is None and there not in part.opaque:
            _forget(into, here, target.pop(key))
        elif isinstance(old, dict) and isinstance(value, dict):
            _place(into, here, part, there)
            _merge_mapping(into, old, here, part, value, there)
        else:
            if key in target:
                _forget(into, here, old)
            target[key] = _copy(into, here, part, there, value)


def _copy(into: Document, path: Path, part: Document, origin: Path, value: Data) -> Data:
    _place(into, path, part, origin)
    if isinstance(value, dict):
        return {
            key: _copy(into, (*path, key), part, (*origin, key), one) for key, one in value.items()
        }
    if isinstance(value, list):
        return [_copy(into, (*path, at), part, (*origin, at), one) for at, one in enumerate(value)]
    return value


def _place(into: Document, path: Path, part: Document, origin: Path) -> None:
    """Take over where something was written."""
    for ours, theirs in ((into.keys, part.keys), (into.values, part.values)):
        found = theirs.get(origin)
        if found is not None:
            ours[path] = Position(found.line, found.column, found.file or part.file)
    if origin in part.opaque:
        into.opaque.add(path)


def _forget(document: Document, path: Path, value: Data) -> None:
    """Forget where something was written that is replaced."""
    document.keys.pop(path, None)
    document.values.pop(path, None)
    document.opaque.discard(path)
    if isinstance(value, dict):
        for key, one in value.items():
            _forget(document, (*path, key), one)
    elif isinstance(value, list):
        for at, one in enumerate(value):
            _forget(document, (*path, at), one)


def problem_in(problem: Problem, part: HostPart) -> bool:
    """Return whether a problem points into an entry of `hosts`."""
    document = part.document
    if problem.file != document.file:
        return False
    length = len(part.path)
    places = {
        (place.line, place.column)
        for places in (document.keys, document.values)
        for path, place in places.items()
        if path[:length] == part.path
    }
    return (problem.line, problem.column) in places
