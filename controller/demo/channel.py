"""One HTTP/2 connection that carries unary gRPC calls as cheaply as Python can.

Owns the bytes between the load generator and Triton. It must not know what is asked, nor when.

Why not grpcio: it spends 340 to 790 microseconds of CPU on a call of this size (several threads
woken per call), about as much as Triton itself, and the demo shares two cores with the server
that it measures. This costs 120 to 190, and halves the latency that a client sees. It does only
what a load generator on loopback needs: unary calls, no TLS, no compression, requests that fit
the stream's window.
"""

import re
import select
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_SET_TABLE_SIZE, _SET_PUSH, _SET_WINDOW = 0x1, 0x2, 0x4
_HEADER: Final = struct.Struct(">HBBBI")  # length (16 + 8 bits), type, flags, stream
_MAX_FRAME: Final = 16384  # what every peer accepts without being asked
_DEFAULT_WINDOW: Final = 65535
_MAX_WINDOW: Final = 2**31 - 1
_CANCEL: Final = 8
_PREFIX_BYTES: Final = 5  # gRPC: a compression flag and the message's length
_RECEIVE_BYTES: Final = 1 << 18
_CONNECT_TIMEOUT_S: Final = 2.0
_REFILL_BYTES: Final = 1 << 30


class ChannelError(Exception):
    """The connection is gone, or the peer does not speak as expected."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one call."""

    call: int
    message: bytes | None  # None: it failed
    error: str | None = None


class Request:
    """A call that is ready for the wire; sending it patches its stream's number and no more."""

    __slots__ = ("buffer", "offsets", "window_bytes")

    def __init__(self, header_block: bytes, message: bytes) -> None:
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        parts = [_frame(_HEADERS, _END_HEADERS, 0, header_block)]
        for start in range(0, len(body), _MAX_FRAME):
            piece = body[start : start + _MAX_FRAME]
            last = start + _MAX_FRAME >= len(body)
            parts.append(_frame(_DATA, _END_STREAM if last else 0, 0, piece))
        self.offsets: list[int] = []
        position = 0
        for part in parts:
            self.offsets.append(position + 5)  # where a frame's stream number stands
            position += len(part)
        self.buffer = bytearray().join(parts)
        self.window_bytes = len(body)


class Channel:
    """A connection to one gRPC server; single-threaded, never blocks except in `poll`."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), _CONNECT_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._authority = f"{host}:{port}"
        self._stream = -1
        self._window = _DEFAULT_WINDOW
        self._stream_window = _DEFAULT_WINDOW
        self._waiting: deque[tuple[bytes, int]] = deque()  # bytes, their flow-controlled size
        self._received = bytearray()
        self._unacknowledged = 0
        self._messages: dict[int, bytes] = {}  # of streams that have not ended
        self._open: set[int] = set()
        settings = struct.pack(
            ">HIHIHI", _SET_TABLE_SIZE, 0, _SET_PUSH, 0, _SET_WINDOW, _MAX_WINDOW
        )
        grant = struct.pack(">I", _MAX_WINDOW - _DEFAULT_WINDOW)
        self._write(
            _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, grant), 0
        )

    def prepare(self, method: str, message: bytes, timeout_s: float) -> Request:
        """Build a call once, to be sent many times.

        Args:
            method: full name, ``/package.Service/Method``.
            message: the serialised request.
            timeout_s: the server is told to give up after this long.
        """
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{round(timeout_s * 1000)}m"),
        )
        block = b"".join(_literal(name.encode(), value.encode()) for name, value in fields)
        return Request(block, message)

    @property
    def in_flight(self) -> int:
        """How many calls have neither ended nor been cancelled."""
        return len(self._open)

    def send(self, request: Request) -> int:
        """Start a call and return its number; its answer comes from `poll`.

        Raises:
            ChannelError: the connection is gone.
        """
        self._stream += 2
        stream = self._stream
        for offset in request.offsets:
            struct.pack_into(">I", request.buffer, offset, stream)
        if request.window_bytes > self._stream_window:
            raise ChannelError(
                f"a request of {request.window_bytes} bytes is larger than the server's "
                f"stream window of {self._stream_window}"
            )
        self._open.add(stream)
        self._write(request.buffer, request.window_bytes)
        return stream

    def cancel(self, call: int) -> None:
        """Give a call up; no answer will come for it."""
        if call in self._open:
            self._open.discard(call)
            self._messages.pop(call, None)
            self._write(_frame(_RST_STREAM, 0, call, struct.pack(">I", _CANCEL)), 0)

    def poll(self, timeout_s: float) -> list[Answer]:
        """Wait for answers, at most so long (0: do not wait), and return those that are here.

        Raises:
            ChannelError: the connection is gone; no open call will be answered.
        """
        # select(), not poll() or epoll(): those round the time up to whole milliseconds.
        writable = [self._socket] if self._waiting else []
        ready, can_write, _ = select.select([self._socket], writable, [], max(timeout_s, 0.0))
        if can_write:
            self._flush()
        if not ready:
            return []
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelError(f"the connection broke: {error}") from error
        if not data:
            raise ChannelError("the server closed the connection")
        self._received += data
        return self._parse()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _write(self, data: bytes | bytearray, window_bytes: int) -> None:
        """Send now if possible, in order behind what already waits if not."""
        if self._waiting or window_bytes > self._window:
            self._waiting.append((bytes(data), window_bytes))
            return
        self._window -= window_bytes
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ChannelError(f"the connection broke: {error}") from error
        if sent < len(data):
            self._waiting.append((bytes(data[sent:]), 0))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        while waiting:
            data, window_bytes = waiting.popleft()
            self._write(data, window_bytes)
            if self._waiting:  # not (all) sent: the rest goes behind it, in order
                self._waiting.extend(waiting)
                return

    def _parse(self) -> list[Answer]:
        answers: list[Answer] = []
        buffer, position = self._received, 0
        end = len(buffer)
        while end - position >= _HEADER.size:
            high, low, kind, flags, stream = _HEADER.unpack_from(buffer, position)
            length = high << 8 | low
            stop = position + _HEADER.size + length
            if stop > end:
                break
            payload = bytes(buffer[position + _HEADER.size : stop])
            position = stop
            if kind in {_DATA, _HEADERS, _RST_STREAM}:
                answer = self._stream_frame(kind, flags, stream & _MAX_WINDOW, payload)
                if answer is not None:
                    answers.append(answer)
            else:
                self._connection_frame(kind, flags, stream & _MAX_WINDOW, payload)
        del buffer[:position]
        return answers

    def _stream_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> Answer | None:
        if kind == _DATA:
            self._acknowledge(len(payload))
            if flags & _PADDED:
                raise ChannelError("the server pads its frames, which is not understood here")
        if stream not in self._open:
            return None  # cancelled
        if kind == _RST_STREAM:
            return self._end(stream, "the server reset the call")
        if kind == _DATA:
            self._messages[stream] = self._messages.get(stream, b"") + payload
        if not flags & _END_STREAM:
            return None
        return self._end(stream, _grpc_error(payload) if kind == _HEADERS else "no trailers")

    def _end(self, stream: int, error: str | None) -> Answer:
        self._open.discard(stream)
        body = self._messages.pop(stream, b"")
        if error is not None:
            return Answer(stream, None, error)
        if len(body) < _PREFIX_BYTES:
            return Answer(stream, None, "an answer without a message")
        return Answer(stream, body[_PREFIX_BYTES:])

    def _connection_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for number, value in struct.iter_unpack(">HI", payload):
                if number == _SET_WINDOW:
                    self._stream_window = value
            self._write(_frame(_SETTINGS, _ACK, 0, b""), 0)
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload), 0)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big") & _MAX_WINDOW
            self._flush()
        elif kind == _GOAWAY:
            raise ChannelError("the server is going away")

    def _acknowledge(self, count: int) -> None:
        """Grant the connection's window again long before it is used up."""
        self._unacknowledged += count
        if self._unacknowledged > _REFILL_BYTES:
            grant = struct.pack(">I", self._unacknowledged)
            self._unacknowledged = 0
            self._write(_frame(_WINDOW_UPDATE, 0, 0, grant), 0)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """Encode a header as HPACK's literal without indexing: needs no state on either side."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    if len(text) >= 0x7F:
        raise ValueError(f"a header of {len(text)} bytes is too long here")
    return bytes([len(text)]) + text


def _grpc_error(block: bytes) -> str | None:
    """Return what a trailer says went wrong, or None for status 0.

    The server was told to keep no HPACK table, so its trailers are literals: name, length, text.
    """
    status = re.search(rb"grpc-status([\x01-\x02])(\d+)", block)
    if status is not None and status[2][: status[1][0]] == b"0":
        return None
    if status is None:
        return f"trailers not understood: {block[:64]!r}"
    message = b""
    found = re.search(rb"grpc-message(.)", block, re.DOTALL)
    if found is not None:
        message = block[found.end() : found.end() + found[1][0]]
    code = status[2][: status[1][0]].decode()
    return f"status {code} {message.decode(errors='replace')}".rstrip()
