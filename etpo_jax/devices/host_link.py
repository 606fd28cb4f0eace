"""Connections between the hosts of one run, over which a lost host is noticed at once.

JAX notices a lost host after 100 seconds of silence, or never while a program of the devices waits
for it, and ends the others with a stack trace. Here each host keeps one TCP connection to the first
host. The kernel closes it when a process dies, and keepalive probes do when a machine does.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

EXIT_CODE = os.EX_TEMPFAIL
"""Exit code of a host that ends because another one is gone: the same command resumes the run."""

SILENCE_S = 30
"""Seconds after which a machine that does not answer counts as lost; a dead process takes none."""

_PROBES = 4  # unanswered ones, SILENCE_S / (_PROBES + 1) apart
_JOIN_S = 60.0
_TOKEN_BYTES = 16
_GRACE_S = 5.0  # in which an error that all hosts have in common ends each of them by itself
_NUMBER_BYTES = 4
# Numbers in place of the index of a lost host.
_GOODBYE = 0xFFFFFFFF
_FAILURE = 0xFFFFFFFE

Exchange = Callable[[str], list[str]]


class HostLink:
    """Watches over the other hosts from threads, and ends this process once one of them is gone.

    Each message is a number of four bytes: the index of a host that the first one has lost, or what
    a host says before it ends: goodbye after a run, failure after an error.
    """

    def __init__(self, index: int, peers: Mapping[int, socket.socket]) -> None:
        """Starts to watch; use `connect`."""
        self._index, self._peers = index, dict(peers)
        for peer in self._peers.values():
            _watch_silence(peer)
        for number in self._peers:
            name = f"link to host {number}"
            threading.Thread(target=self._follow, args=[number], name=name, daemon=True).start()

    @classmethod
    def connect(cls, index: int, count: int, address: str, exchange: Exchange) -> "HostLink | None":
        """Connects the hosts; all of them call this at the same time.

        Args:
          index: index of this host.
          count: number of hosts.
          address: name or address of the first host.
          exchange: gathers one text from each host, in the order of the hosts.

        Returns:
          The link; None on every host, after a warning, if one of them cannot reach the first.
        """
        problem, peers = "", {}
        if index == 0:
            with socket.create_server(("", 0), backlog=count) as listener:
                token = secrets.token_hex(_TOKEN_BYTES)
                exchange(f"{token} {listener.getsockname()[1]}")
                peers = _accept(listener, token.encode(), count)
        else:
            token, port = exchange("")[0].split()
            try:
                peers = {0: _call(address, int(port), token.encode(), index)}
            except OSError as error:
                problem = f"host {index} cannot reach {address}:{port} ({error.strerror or error})"
        problems = [text for text in exchange(problem) if text]
        if not problems and len(peers) == (count - 1 if index == 0 else 1):
            return cls(index, peers)
        for peer in peers.values():
            peer.close()
        if index == 0:
            detail = "; ".join(problems)
            print(
                f"warning: {detail}: a lost host will be noticed late, as JAX does by itself",
                file=sys.stderr,
                flush=True,
            )
        return None

    def announce_end(self, *, has_failed: bool) -> None:
        """Tells the others that this process ends now; after a failure they end as well."""
        for peer in self._peers.values():
            _send(peer, _FAILURE if has_failed else _GOODBYE)

    def _follow(self, number: int) -> None:
        """Reads what one host says, until its goodbye or its end."""
        said = _read_number(self._peers[number])
        if said == _GOODBYE:
            return
        if said == _FAILURE:
            time.sleep(_GRACE_S)
        lost = number if said in (None, _FAILURE) else said
        for other, peer in self._peers.items():
            if other != number:
                _send(peer, lost)
        give_up(
            f"host {lost} is gone, so host {self._index} ends: the same command on all hosts "
            "resumes the run from its last checkpoint"
        )


def give_up(reason: str) -> NoReturn:
    """Ends this process at once, with one line on standard error and `EXIT_CODE`."""
    with contextlib.suppress(OSError):
        os.write(2, f"error: {reason}\n".encode())
    leave(EXIT_CODE)


def leave(code: int) -> NoReturn:
    """Ends this process at once, without waiting for threads, devices or other hosts."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _accept(listener: socket.socket, token: bytes, count: int) -> dict[int, socket.socket]:
    """Connections of all hosts but the first, by index; strangers are turned away."""
    peers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + _JOIN_S
    while len(peers) < count - 1 and (rest := deadline - time.monotonic()) > 0:
        listener.settimeout(rest)
        with contextlib.suppress(OSError):
            peer, _ = listener.accept()
            peer.settimeout(5.0)
            index = None
            if _read(peer, len(token)) == token:
                index = _read_number(peer)
            if index is None or not 0 < index < count:
                peer.close()
                continue
            peers[index] = peer
    return peers


def _call(address: str, port: int, token: bytes, index: int) -> socket.socket:
    peer = socket.create_connection((address, port), timeout=_JOIN_S / 2)
    peer.sendall(token + index.to_bytes(_NUMBER_BYTES))
    return peer


def _watch_silence(peer: socket.socket) -> None:
    peer.settimeout(None)
    pause = SILENCE_S // (_PROBES + 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def _send(peer: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(number.to_bytes(_NUMBER_BYTES))


def _read_number(peer: socket.socket) -> int | None:
    data = _read(peer, _NUMBER_BYTES)
    return None if data is None else int.from_bytes(data)


def _read(peer: socket.socket, length: int) -> bytes | None:
    """The next bytes; None if the connection ends before."""
    data = b""
    while len(data) < length:
        try:
            part = peer.recv(length - len(data))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return data
