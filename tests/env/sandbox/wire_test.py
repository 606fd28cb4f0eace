"""Frames: what was sent arrives, in whatever pieces; what is not allowed is refused at once."""

import socket
import threading

import pytest

from env.sandbox import wire


def _bytes(kind: bytes, *parts: bytes) -> bytes:
    return b"".join(wire.frame(kind, *parts))


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_frames_arrive_in_any_pieces(size):
    stream = _bytes(b"A", b"ab", b"", b"c") + _bytes(b"B") + _bytes(b"A", b"x" * 50)
    reader = wire.FrameReader({b"A": 50, b"B": 0})
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    frames = [frame for piece in pieces for frame in reader.feed(piece)]
    assert frames == [(b"A", b"abc"), (b"B", b""), (b"A", b"x" * 50)]


@pytest.mark.parametrize(
    "stream", [_bytes(b"C"), _bytes(b"A", b"x" * 51), _bytes(b"B", b"x"), b"A" + b"\xff" * 8]
)
def test_a_header_that_is_not_allowed_is_enough(stream):
    reader = wire.FrameReader({b"A": 50, b"B": 0})
    with pytest.raises(wire.WireError, match="is not allowed"):
        list(reader.feed(stream[:9]))


def test_blocking_ends(pair):
    ours, theirs = pair
    data = bytes(range(256)) * 4000  # more than a socket holds
    thread = threading.Thread(target=wire.send, args=(ours, b"A", data[:10], data[10:]))
    thread.start()
    assert wire.receive(theirs, b"A") == data
    thread.join()
    buffer = bytearray(3)
    wire.send(ours, b"B", b"abc")
    wire.receive_into(theirs, b"B", memoryview(buffer))
    assert buffer == b"abc"


def test_the_wrong_frame_is_an_error(pair):
    ours, theirs = pair
    wire.send(ours, b"A", b"abc")
    with pytest.raises(wire.WireError, match="expected a frame b'B', got b'A'"):
        wire.receive(theirs, b"B")
    wire.send(ours, b"A", b"")
    theirs.recv(3)
    wire.send(ours, b"A", b"abc")
    with pytest.raises(wire.WireError, match="expected 2 bytes"):
        wire.receive_into(theirs, b"A", memoryview(bytearray(2)))


def test_the_end_of_the_stream_is_an_error(pair):
    ours, theirs = pair
    ours.send(b"A")
    ours.close()
    with pytest.raises(wire.WireError, match="closed the connection"):
        wire.receive(theirs, b"A")
