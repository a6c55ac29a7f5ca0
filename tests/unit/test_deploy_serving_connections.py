"""Clients that do not send, or do not read: over real sockets, to a service in a process of its own."""

from __future__ import annotations

import io
import socket
import time

import httpx
import numpy as np
import pytest
from deployed import eeg, tiny_folder
from served import MIB, Server, body_of

PICTURE = 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of pictures that zlib cannot make small."""
    return tiny_folder(tmp_path_factory.mktemp("served") / "fp32", 64, 512)


def address(server):
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def closed_by_the_server(connection, within_s):
    connection.settimeout(within_s)
    try:
        return connection.recv(4096) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_idle_and_half_heads_end_and_never_keep_a_probe_out(folder):
    server = Server(folder, "--head-timeout", "3")
    held = []
    try:
        for number in range(900):
            connection = socket.create_connection(address(server), timeout=10)
            if number % 2:
                connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\n")
            held.append(connection)
        assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
        answer = httpx.post(f"{server.url}/generate", content=body_of(1), timeout=60)
        assert answer.status_code == 200
        assert all(closed_by_the_server(connection, 20) for connection in held)
    finally:
        for connection in held:
            connection.close()
        server.stop()


def test_a_head_after_an_answer_has_a_deadline_too(folder):
    server = Server(folder, "--head-timeout", "1")
    try:
        with socket.create_connection(address(server), timeout=10) as connection:
            for _ in range(2):
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                said = b""
                while not said.endswith(b"}"):
                    piece = connection.recv(4096)
                    assert piece
                    said += piece
                assert said.startswith(b"HTTP/1.1 200 OK")
            connection.sendall(b"GET /health HTTP/1.1\r\n")
            assert closed_by_the_server(connection, 20)
    finally:
        server.stop()


def silent(server, body, samples):
    """A client that asks and then reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(address(server))
    head = f"POST /generate?format=zip&samples={samples} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_who_does_not_read_holds_its_place_until_it_is_dropped(tmp_path):
    folder = tiny_folder(tmp_path / "fp32", latent=(2, PICTURE // 2, PICTURE // 2))
    server = Server(folder, "--places", "2", "--write-timeout", "8")
    buffer = io.BytesIO()
    np.save(buffer, eeg(1))
    body, held = buffer.getvalue(), []
    try:
        asked = f"{server.url}/generate?format=zip&samples=2"
        right = httpx.post(asked, content=body, timeout=60)
        # More than what the system's own buffers take.
        assert (right.status_code, len(right.content) > 4 * MIB) == (200, True)
        held = [silent(server, body, 2) for _ in range(2)]
        deadline = time.monotonic() + 60
        while server.counts().get('ddscale_requests_total{status="200"}') != 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Both are drawn, neither is sent.
        assert server.counts()["ddscale_queue_taken"] == 2
        assert httpx.post(asked, content=body, timeout=60).status_code == 429
        assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
        while server.counts()["ddscale_queue_taken"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert httpx.post(asked, content=body, timeout=60).status_code == 200
        # A client that leaves without reading frees its place at once.
        gone = silent(server, body, 2)
        while server.counts()['ddscale_requests_total{status="200"}'] != 5:
            assert time.monotonic() < deadline + 60
            time.sleep(0.05)
        gone.close()
        while server.counts()["ddscale_queue_taken"]:
            assert time.monotonic() < deadline + 60
            time.sleep(0.1)
    finally:
        for connection in held:
            connection.close()
        server.stop()
