"""Hosts in threads of one process: who is gone is named once, who says so before is let go."""

import contextlib
import queue
import socket
import threading

import pytest

from etpo_jax.devices import host_link
from etpo_jax.devices.host_link import HostLink


class Hosts:
    """Links of several hosts, whose ends are noted instead of carried out."""

    def __init__(self, count, monkeypatch, address="127.0.0.1"):
        self.ends, self.lines = queue.Queue(), queue.Queue()
        monkeypatch.setattr(host_link, "leave", self.ends.put)
        monkeypatch.setattr(host_link.os, "write", lambda _, line: self.lines.put(line.decode()))
        monkeypatch.setattr(host_link, "_GRACE_S", 0.2)
        self.links = [None] * count
        barrier, texts = threading.Barrier(count), [""] * count

        def exchange(index, text):
            texts[index] = text
            barrier.wait(20)
            found = list(texts)
            barrier.wait(20)
            return found

        def join(index):
            self.links[index] = HostLink.connect(
                index, count, address, lambda text: exchange(index, text)
            )

        threads = [threading.Thread(target=join, args=[index]) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        self._peers = [list(link._peers.values()) if link else [] for link in self.links]

    def kill(self, index):
        """Ends the connections of a host, as the kernel does when its process dies."""
        if self.links[index]:
            self.links[index]._peers.clear()  # it tells nobody
        for peer in self._peers[index]:
            peer.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Ends all threads, none of which may end the process of the tests later."""
        for index in range(len(self.links)):
            with contextlib.suppress(OSError):
                self.kill(index)
        for thread in threading.enumerate():
            if thread.name.startswith("link to host "):
                thread.join(20)
        for peers in self._peers:
            for peer in peers:
                peer.close()


@pytest.fixture
def start(monkeypatch):
    """Makes hosts, whose threads end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda count: stack.enter_context(contextlib.closing(Hosts(count, monkeypatch)))


@pytest.mark.parametrize("lost", [0, 2])
def test_all_others_end_when_one_is_gone(lost, start):
    hosts = start(3)
    hosts.kill(lost)
    awaited = {f"error: host {lost} is gone, so host {each} ends" for each in {0, 1, 2} - {lost}}
    while awaited:
        # The lost one, which is no process here, speaks as well.
        line = hosts.lines.get(timeout=20)
        awaited.discard(line.rpartition(":")[0])
        assert line.count("\n") == 1
        assert hosts.ends.get(timeout=20) == host_link.EXIT_CODE


def test_a_host_that_says_goodbye_is_let_go(start):
    hosts = start(2)
    hosts.links[1].announce_end(has_failed=False)
    hosts.kill(1)
    assert "so host 1 ends" in hosts.lines.get(timeout=20)  # which no process ends here
    with pytest.raises(queue.Empty):
        hosts.lines.get(timeout=0.5)


def test_a_host_that_has_failed_takes_the_others_along(start):
    hosts = start(2)
    hosts.links[0].announce_end(has_failed=True)
    assert hosts.ends.get(timeout=20) == host_link.EXIT_CODE


def test_strangers_are_turned_away_and_without_a_link_there_is_a_warning(start, monkeypatch, capfd):
    def call(address, port, token, index):
        with socket.create_connection((address, port), timeout=5) as stranger:
            stranger.sendall(bytes(len(token)) + (1).to_bytes(4))
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(host_link, "_call", call)
    monkeypatch.setattr(host_link, "_JOIN_S", 0.5)
    hosts = start(2)
    assert hosts.links == [None, None]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: host 1 cannot reach 127.0.0.1:")
    assert "Connection refused" in line
