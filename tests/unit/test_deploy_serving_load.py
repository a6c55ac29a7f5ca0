"""The service as a process of its own, over real connections: many clients at once, clients that go, its memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from deployed import eeg, tiny_folder
from mangling import is_eeg, mangled, npy
from served import CHANNELS, MIB, ROOT, SAMPLES, Server, body_of

CLIENTS, PLACES = 200, 8
MANGLED = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("served") / "fp32", CHANNELS, SAMPLES)


@pytest.fixture
def server(folder):
    server = Server(folder, "--places", str(PLACES))
    yield server
    server.stop()


def test_of_two_hundred_clients_at_once_none_is_lost_and_memory_is_bounded(server):
    body = body_of(8)
    assert len(body) > MIB
    turned_away = 0

    async def ask(client, number):
        nonlocal turned_away
        while True:
            answer = await client.post(f"{server.url}/generate", params={"seed": number}, content=body)
            if answer.status_code != 429:
                return answer
            turned_away += 1
            # A client obeys; here in hundredths, for the test not to take minutes.
            await asyncio.sleep(int(answer.headers["retry-after"]) / 20)

    async def all_at_once():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=300) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(CLIENTS)))

    httpx.post(f"{server.url}/generate", content=body, timeout=60)
    before = server.memory()
    answers = asyncio.run(all_at_once())
    after = server.memory()
    assert [answer.status_code for answer in answers] == [200] * CLIENTS
    assert len({answer.content for answer in answers}) == CLIENTS
    assert turned_away > 0
    # Without the limit the bodies alone would be 200 MiB. With it: places, and a buffer for each connection.
    print(f"memory grew by {(after - before) / MIB:.0f} MiB; {turned_away} times turned away")
    assert after - before < 100 * MIB
    counts = server.counts()
    assert counts['ddscale_requests_total{status="200"}'] == CLIENTS + 1
    assert counts['ddscale_requests_total{status="429"}'] == turned_away
    assert counts["ddscale_queue_taken"] == 0


def test_clients_that_go_away_free_their_places(server):
    body = body_of(16)
    head = f"POST /generate?steps=1000 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def come_and_go(piece):
        _, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
        writer.write(head + piece)
        await writer.drain()
        while server_taken() < 1:
            await asyncio.sleep(0.01)
        writer.close()

    def server_taken():
        return server.counts()["ddscale_queue_taken"]

    async def several():
        await asyncio.gather(*(come_and_go(piece) for piece in (body[:1000], body, body, body, body)))

    asyncio.run(several())
    deadline = time.monotonic() + 60
    while server_taken() and time.monotonic() < deadline:
        time.sleep(0.02)
    counts = server.counts()
    assert counts["ddscale_queue_taken"] == 0
    assert counts['ddscale_requests_total{status="499"}'] >= 4
    assert counts["ddscale_unet_calls_total"] < 4 * 2000
    assert httpx.post(f"{server.url}/generate", content=body, timeout=60).status_code == 200


def test_garbage_over_real_connections_does_not_end_it(server):
    random = np.random.default_rng(0)
    body = body_of(1)
    right = b"POST /generate HTTP/1.1\r\nHost: x\r\n"
    host, port = server.url.removeprefix("http://").split(":")

    def request():
        match random.integers(7):
            case 0:
                return random.bytes(random.integers(1, 5000))
            case 1:
                return right + b"Content-Length: 99999999999999999999\r\n\r\n" + body[:1000]
            case 2:
                return right + b"Content-Length: -5\r\n\r\n" + body
            case 3:
                return right + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffffff\r\n" + random.bytes(100_000)
            case 4:
                return right + b"X: " + b"y" * 100_000 + b"\r\n\r\n"
            case 5:
                return (
                    right
                    + f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body[: random.integers(len(body))]
                )
            case _:
                chunks = b"".join(b"5\r\n" + random.bytes(5) + b"\r\n" for _ in range(200))
                return right + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    for _ in range(300):
        with (
            socket.create_connection((host, int(port)), timeout=10) as connection,
            contextlib.suppress(OSError),
        ):
            connection.sendall(request())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(4096)
    assert server.process.poll() is None
    assert httpx.post(f"{server.url}/generate", content=body, timeout=60).status_code == 200
    assert server.counts()["ddscale_queue_taken"] == 0


def test_mangled_bodies_over_real_connections_several_at_once(tmp_path):
    server = Server(tiny_folder(tmp_path / "fp32"), "--places", "32")
    random = np.random.default_rng(1)
    # A right one now and then: it must be drawn amid the others.
    bodies = [mangled(random) if number % 35 else npy(eeg()) for number in range(MANGLED)]
    queries = ["", "samples=2", "steps=2&scheduler=lcm", "samples=99", "%ff=%00", "format=zip"]
    counts: dict[int, int] = {}

    async def ask(client, mine):
        for number, body in mine:
            answer = await client.post(f"{server.url}/generate?{queries[number % 6]}", content=body)
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            if answer.status_code == 200:
                assert is_eeg(body), body[:200]
            else:
                assert answer.json()["error"]["message"]

    async def all_of_them():
        numbered = list(enumerate(bodies))
        async with httpx.AsyncClient(timeout=60) as client:
            await asyncio.gather(*(ask(client, numbered[first::8]) for first in range(8)))

    try:
        asyncio.run(all_of_them())
        print(counts)
        assert set(counts) <= {200, 400, 413, 422}
        assert min(counts[400], counts[422], counts[413]) > 50
        assert counts[200] >= 10
        assert sum(counts.values()) == MANGLED
        assert server.counts()["ddscale_queue_taken"] == 0
        assert server.process.poll() is None
    finally:
        server.stop()


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_when_told_and_answers_what_it_has_begun(folder, provider, number):
    server = Server(folder, "--provider", provider, "--max-pictures", "64")
    try:
        with ThreadPoolExecutor(1) as thread:
            url, body = f"{server.url}/generate?steps=1000", body_of(64)
            asked = thread.submit(httpx.post, url, content=body, timeout=120)
            while not server.counts()["ddscale_queue_taken"]:
                time.sleep(0.01)
            assert not asked.done()
            said = server.stop(number)
            answer = asked.result()
    finally:
        server.process.kill()
    assert (answer.status_code, server.process.returncode) == (200, 0)
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("made", ["nothing", "damaged"])
def test_a_folder_that_cannot_be_served_ends_it_with_one_line(tmp_path, made):
    folder = tmp_path / "fp32"
    if made == "damaged":
        tiny_folder(folder)
        (folder / "unet.onnx").write_bytes(b"0")
    done = subprocess.run(
        [sys.executable, "-m", "ddscale.deploy.serving", str(folder), "--port", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(
        r"error: .*(no manifest\.json in .*to_onnx\.py|unet\.onnx has 1 bytes.*export again)", last
    ), last
