"""The HTTP service, in this process: what it answers, what it refuses, and that nothing sent to it breaks it."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import zipfile
from contextlib import asynccontextmanager

import numpy as np
import pytest
from deployed import CHANNELS, SAMPLES, SFREQ, eeg, tiny_folder
from mangling import is_eeg, mangled, npy
from PIL import Image

from ddscale.deploy.runtime import EEGToImage
from ddscale.deploy.runtime.png import grid
from ddscale.deploy.serving.app import make_app
from ddscale.deploy.serving.npy_body import NpyBody
from ddscale.deploy.serving.parameters import Limits

GENERATE = "/generate"


class Answer:
    """What a service said to one request."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def message(self):
        error = json.loads(self.body)["error"]
        assert error["status"] == self.status
        return error["message"]


class Client:
    """One request of ASGI, its body in pieces; `leaves` makes the client close its connection."""

    def __init__(self, app):
        self.app = app

    async def post(
        self, body=b"", query="", headers=(), pieces=None, leaves=None, path=GENERATE, method="POST"
    ):
        pieces = [body] if pieces is None else pieces
        coming = iter(pieces)
        sent: list[dict] = []
        left = len(pieces)

        async def receive():
            nonlocal left
            if left:
                left -= 1
                piece = next(coming)
                if callable(piece):
                    await piece()
                    return {"type": "http.disconnect"}
                return {"type": "http.request", "body": piece, "more_body": left > 0}
            await (leaves or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await self.app(scope, receive, send)
        start = next(message for message in sent if message["type"] == "http.response.start")
        body = b"".join(
            message.get("body", b"") for message in sent if message["type"] == "http.response.body"
        )
        return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body)

    async def get(self, path):
        return await self.post(path=path, method="GET")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("served") / "fp32")


@pytest.fixture(scope="module")
def model(folder):
    return EEGToImage.load(folder, threads=1)


class Slow:
    """A model that takes its time: each of `steps` steps waits until it is let go on."""

    def __init__(self, model):
        self._model = model
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.drawn: list[int] = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def generate(self, eeg, on_step, seed, **settings):
        self.begun.release()
        while not self.go_on.acquire(timeout=0.01):
            on_step(0, 1)
        self.drawn.append(seed)
        return self._model.generate(eeg, seed=seed, **settings)


@asynccontextmanager
async def serving(model, **limits):
    """A client of a running service whose model is loaded."""
    app = make_app(lambda: model, Limits(**limits))
    async with app.router.lifespan_context(app):
        client = Client(app)
        while (await client.get("/ready")).status != 200:
            await asyncio.sleep(0.001)
        yield client


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 400))


def asked(model, body=None, query="", **more):
    async def ask():
        async with serving(model) as client:
            return await client.post(npy(eeg(1)) if body is None else body, query, **more)

    return run(ask())


# Pictures


def test_one_picture(model):
    answer = asked(model, query="seed=5&steps=2&scheduler=ddim&guidance=2&sfreq=256&unit=uV")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    picture = np.asarray(Image.open(io.BytesIO(answer.body)))
    np.testing.assert_array_equal(
        picture, model.generate(eeg(1), seed=5, steps=2, scheduler="ddim", guidance=2)[0]
    )


def test_several_pictures_are_a_grid_a_row_for_each_window(model):
    answer = asked(model, npy(eeg(3)), "samples=2&seed=5")
    picture = np.asarray(Image.open(io.BytesIO(answer.body)))
    np.testing.assert_array_equal(picture, grid(model.generate(eeg(3), seed=5, samples=2), columns=2))
    assert picture.shape == (3 * 8 + 2 * 4, 2 * 8 + 4, 3)


def test_several_pictures_in_a_zip(model):
    answer = asked(model, npy(eeg(2)), "samples=2&format=zip")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.namelist() == ["0-0.png", "0-1.png", "1-0.png", "1-1.png"]
        pictures = [np.asarray(Image.open(archive.open(name))) for name in archive.namelist()]
    np.testing.assert_array_equal(pictures, model.generate(eeg(2), samples=2))


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i2", "<f2"])
def test_other_types_and_orders_of_memory(model, dtype):
    windows = eeg(2).round().astype(dtype)
    expected = asked(model, npy(eeg(2).round())).body
    assert asked(model, npy(windows)).body == expected
    assert asked(model, npy(np.asfortranarray(windows))).body == expected


def test_a_body_that_comes_byte_by_byte(model):
    body = npy(eeg(1))
    pieces = [body[i : i + 1] for i in range(200)] + [b"", body[200:]]
    assert asked(model, pieces=pieces).body == asked(model, body).body


# Refusals: a status, a cause and a remedy


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "empty"),
        (b"hello", 400, "not a .npy file: send np.save's bytes"),
        (b"PK\x03\x04" + b"0" * 100, 400, "npz or zip"),
        (npy(eeg(1))[:50], 400, "ends within the .npy header"),
        (npy(eeg(1))[:-1], 400, "ends after 639 of 640 bytes"),
        (npy(eeg(1)) + b"0", 400, "longer than the 640 bytes its header announces"),
        (b"\x93NUMPY\x03\x00" + b"\x00" * 50, 400, r"version \(3, 0\)"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"0" * 50, 400, "header has 2147483647 bytes"),
        (npy(np.array([None] * 9)), 400, "type object"),
        (npy(np.zeros((1, CHANNELS, SAMPLES), complex)), 400, "complex128"),
        (npy(np.zeros((1, CHANNELS, SAMPLES), [("a", "f4")])), 400, "type"),
        (npy(eeg(1).transpose(0, 2, 1)), 422, r"shape \(1, 32, 4\).*swap"),
        (
            npy(eeg(1)[:, :2]),
            422,
            r"shape \(1, 2, 32\), the model takes .*4 channels, 32 samples\) at 256 Hz",
        ),
        (npy(np.zeros((0, CHANNELS, SAMPLES), np.float32)), 422, "shape"),
        (npy(eeg(17)), 413, "17 windows in one request, at most 16"),
        (npy(eeg(1) * np.float32(1e-6)), 422, "not in µV"),
        (npy(eeg(1) * np.float32("nan")), 422, "NaN"),
        (npy(np.zeros((CHANNELS, SAMPLES), np.float32)), 422, "no signal"),
    ],
)
def test_bodies_that_are_refused(model, body, status, message):
    answer = asked(model, body)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert re.search(message, answer.message), answer.message


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("steps=0", 422, "steps"),
        ("steps=7", 422, "no table for .* with 7 steps"),
        ("steps=seven", 422, "steps"),
        ("scheduler=euler", 422, "no table for euler"),
        ("guidance=0.5", 422, "guidance"),
        ("guidance=nan", 422, "guidance"),
        ("seed=-1", 422, "seed"),
        ("sample=3", 422, "sample: Extra inputs"),
        ("samples=17", 413, "1 windows with 17 samples each are more than the 16"),
        ("sfreq=250", 422, "250 Hz.*resample"),
        ("unit=V", 422, "stated in V.*multiply"),
        ("format=gif", 422, "png"),
        ("seed=1&seed=2", 422, "seed is given more than once"),
    ],
)
def test_parameters_that_are_refused(model, query, status, message):
    answer = asked(model, query=query)
    assert answer.status == status
    assert re.search(message, answer.message), answer.message


def test_forms_and_compressed_bodies_are_refused(model):
    for name, value in (("content-type", "multipart/form-data; boundary=x"), ("content-encoding", "gzip")):
        answer = asked(model, headers=[(name, value)])
        assert (answer.status, "--data-binary" in answer.message) == (415, True)


def test_other_paths_and_methods(model):
    assert asked(model, path="/nothing").status == 404
    answer = asked(model, method="GET")
    assert answer.status == 405
    assert "POST to /generate" in answer.message


def test_an_announced_oversize_body_is_refused_before_it_is_read(model):
    async def never():
        pytest.fail("the body was asked for")

    headers = [("content-length", str(10**9)), ("expect", "100-continue")]
    answer = asked(model, pieces=[never], headers=headers)
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert "send several requests" in answer.message


def test_an_endless_body_is_cut_off(model):
    taken = 0

    def endless():
        nonlocal taken
        header = npy(eeg(16))[:128]
        yield header
        while True:
            taken += 1
            yield b"\x01" * 65536

    class Endless:
        def __init__(self):
            self.pieces = endless()

        def __len__(self):
            return 10**9

        def __iter__(self):
            return self.pieces

    answer = asked(model, pieces=Endless())
    assert answer.status == 400
    assert answer.headers["connection"] == "close"
    # After the refusal as much is let come as a right body could have, so that the client sees the answer.
    assert taken < 10


def test_the_longest_right_body_fits(model):
    windows = npy(eeg(16).astype(np.float64))
    assert len(windows) <= NpyBody.longest(model.manifest, 16)
    assert asked(model, windows, headers=[("content-length", str(len(windows)))]).status == 200


# State


def test_health_ready_and_metrics(model):
    async def ask():
        async with serving(model, places=7) as client:
            await client.post(npy(eeg(2)), "samples=3&steps=2")
            await client.post(b"junk")
            return [await client.get(path) for path in ("/health", "/ready", "/metrics", "/docs")]

    health, ready, metrics, docs = run(ask())
    assert [health.status, ready.status, metrics.status, docs.status] == [200] * 4
    facts = json.loads(ready.body)
    assert (facts["channels"], facts["samples"], facts["sfreq"]) == (CHANNELS, SAMPLES, SFREQ)
    assert {"scheduler": "ddim", "steps": 2} in facts["schedules"]
    counts = prometheus(metrics.body.decode())
    assert counts['ddscale_requests_total{status="200"}'] == 1
    assert counts['ddscale_requests_total{status="400"}'] == 1
    assert counts["ddscale_pictures_total"] == 6
    assert counts["ddscale_unet_calls_total"] == 2
    assert counts["ddscale_queue_places"] == 7
    assert counts["ddscale_queue_taken"] == 0
    assert counts['ddscale_request_seconds_bucket{le="+Inf"}'] == counts["ddscale_request_seconds_count"] == 1
    assert counts['ddscale_stage_seconds_total{stage="unet"}'] > 0


def prometheus(text):
    """Prometheus' text format, strictly: every sample after its HELP and TYPE."""
    counts, typed = {}, set()
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert kind in ("counter", "gauge", "histogram")
            typed.add(name)
        elif not line.startswith("# HELP "):
            name, value = line.rsplit(" ", 1)
            base = name.split("{")[0]
            assert typed & {
                base,
                base.removesuffix("_bucket"),
                base.removesuffix("_sum"),
                base.removesuffix("_count"),
            }
            counts[name] = float(value)
    return counts


async def all_places_free(client):
    """Returns once no place is taken; the test's own limit of time ends it otherwise."""
    while prometheus((await client.get("/metrics")).body.decode())["ddscale_queue_taken"]:
        await asyncio.sleep(0.005)


def test_while_loading_it_lives_and_is_not_ready(model):
    go_on = threading.Event()

    def load():
        go_on.wait()
        return model

    async def ask():
        app = make_app(load)
        async with app.router.lifespan_context(app):
            client = Client(app)
            before = [await client.get("/health"), await client.get("/ready"), await client.post(npy(eeg(1)))]
            go_on.set()
            while (await client.get("/ready")).status != 200:
                await asyncio.sleep(0.001)
            return [*before, await client.post(npy(eeg(1)))]

    health, ready, early, late = run(ask())
    assert [health.status, ready.status, early.status, late.status] == [200, 503, 503, 200]
    assert early.headers["retry-after"] == "5"


def test_a_model_that_cannot_be_loaded_is_told(folder):
    failures = []

    async def ask():
        app = make_app(lambda: EEGToImage.load(folder, decoder="tiny"), on_failure=failures.append)
        async with app.router.lifespan_context(app):
            while not failures:
                await asyncio.sleep(0.001)
            return await Client(app).get("/ready")

    answer = run(ask())
    assert answer.status == 503
    assert "no tiny_decoder" in answer.message


# Queue, time, clients that leave


def test_a_full_queue_says_when_to_come_again(model):
    slow = Slow(model)

    async def ask():
        async with serving(slow, places=2) as client:
            waiting = [asyncio.create_task(client.post(npy(eeg(1)), f"seed={i}")) for i in range(2)]
            await asyncio.to_thread(slow.begun.acquire)
            refused = await client.post(npy(eeg(1)))
            slow.go_on.release(3)
            answered = await asyncio.gather(*waiting)
            return refused, answered, await client.post(npy(eeg(1)))

    refused, answered, later = run(ask())
    assert refused.status == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert "all 2 places are taken: come again in" in refused.message
    assert [answer.status for answer in [*answered, later]] == [200] * 3


def test_a_client_that_goes_away_frees_its_place_while_it_is_drawn_for(model):
    slow = Slow(model)

    async def ask():
        async with serving(slow, places=1) as client:
            leaves = asyncio.Event()
            leaving = asyncio.create_task(client.post(npy(eeg(1)), "seed=1", leaves=leaves))
            await asyncio.to_thread(slow.begun.acquire)
            assert (await client.post(npy(eeg(1)))).status == 429
            leaves.set()
            assert (await leaving).status == 499
            await all_places_free(client)
            slow.go_on.release()
            return await client.post(npy(eeg(1)), "seed=2")

    assert run(ask()).status == 200
    assert slow.drawn == [2]


def test_a_client_that_goes_away_while_it_waits_is_never_drawn_for(model):
    slow = Slow(model)

    async def ask():
        async with serving(slow, places=2) as client:
            first = asyncio.create_task(client.post(npy(eeg(1)), "seed=1"))
            await asyncio.to_thread(slow.begun.acquire)
            leaves = asyncio.Event()
            leaving = asyncio.create_task(client.post(npy(eeg(1)), "seed=2", leaves=leaves))
            await asyncio.sleep(0.02)
            leaves.set()
            assert (await leaving).status == 499
            third = asyncio.create_task(client.post(npy(eeg(1)), "seed=3"))
            slow.go_on.release(3)
            return await asyncio.gather(first, third)

    assert [answer.status for answer in run(ask())] == [200, 200]
    assert slow.drawn == [1, 3]


def test_a_client_that_goes_away_while_sending_frees_its_place(model):
    async def ask():
        async with serving(model, places=1) as client:
            body = npy(eeg(1))
            for _ in range(5):
                answer = await client.post(pieces=[body[:200], _nothing])
                assert answer.status == 499
            return await client.post(body)

    assert run(ask()).status == 200


async def _nothing():
    pass


def test_a_request_that_takes_too_long_gets_504_and_its_place_is_free_again(model):
    slow = Slow(model)

    async def ask():
        async with serving(slow, places=1, timeout_s=0.2) as client:
            late = await client.post(npy(eeg(1)), "seed=1")
            await all_places_free(client)
            slow.go_on.release()
            answer = await client.post(npy(eeg(1)), "seed=2")
            metrics = prometheus((await client.get("/metrics")).body.decode())
            return late, answer, metrics

    late, answer, metrics = run(ask())
    assert late.status == 504
    assert "no picture after 0.2 s" in late.message
    assert answer.status == 200
    assert slow.drawn == [2]
    assert metrics['ddscale_requests_total{status="504"}'] == 1


def test_a_body_that_does_not_come_gets_408(model):
    async def ask():
        async with serving(model, places=1, timeout_s=0.1) as client:
            never = asyncio.Event()
            slow = await client.post(pieces=[npy(eeg(1))[:100], never.wait])
            return slow, await client.post(npy(eeg(1)))

    slow, after = run(ask())
    assert (slow.status, after.status) == (408, 200)
    assert "had not come after 0.1 s" in slow.message


@pytest.mark.parametrize("failure", [RuntimeError, ValueError])
def test_an_error_in_drawing_is_an_answer_and_not_the_end(model, caplog, failure):
    class Broken:
        def __getattr__(self, name):
            return getattr(model, name)

        def generate(self, eeg, seed, **settings):
            if seed == 1:
                raise failure("the engine has failed")
            return model.generate(eeg, seed=seed, **settings)

    async def ask():
        async with serving(Broken()) as client:
            return await client.post(npy(eeg(1)), "seed=1"), await client.post(npy(eeg(1)))

    broken, after = run(ask())
    assert (broken.status, after.status) == (500, 200)
    assert "the engine has failed" in caplog.text
    assert "the engine" not in broken.message


def test_the_service_stops_while_it_draws(model):
    slow = Slow(model)

    async def ask():
        async with serving(slow) as client:
            waiting = [asyncio.create_task(client.post(npy(eeg(1)))) for _ in range(3)]
            await asyncio.to_thread(slow.begun.acquire)
        return await asyncio.gather(*waiting)

    assert [answer.status for answer in run(ask())] == [503] * 3
    assert slow.drawn == []


# Anything at all


def test_ten_thousand_bodies_of_any_kind_never_break_it(model):
    random = np.random.default_rng(0)
    queries = [
        "",
        "samples=2",
        "seed=9",
        "steps=2&scheduler=lcm",
        "samples=99",
        "%ff=%00",
        "format=zip",
        "sfreq=1e400",
    ]

    async def ask():
        counts: dict[int, int] = {}
        async with serving(model) as client:
            for _ in range(10_000):
                body = mangled(random)
                pieces = None
                if random.random() < 0.2 and len(body) > 2:
                    cut = int(random.integers(1, len(body)))
                    pieces = [body[:cut], body[cut:]]
                headers = [("content-length", str(len(body)))] if random.random() < 0.5 else ()
                answer = await client.post(body, str(random.choice(queries)), headers, pieces)
                counts[answer.status] = counts.get(answer.status, 0) + 1
                if answer.status == 200:
                    assert is_eeg(body), body[:200]
                else:
                    assert answer.message
            after = await client.post(npy(eeg(1)))
            return counts, after, prometheus((await client.get("/metrics")).body.decode())

    counts, after, metrics = run(ask())
    print(counts)
    assert set(counts) <= {200, 400, 413, 422}
    assert min(counts.get(400, 0), counts.get(422, 0), counts.get(413, 0)) > 100
    assert after.status == 200
    assert metrics["ddscale_queue_taken"] == 0
    total = sum(count for name, count in metrics.items() if name.startswith("ddscale_requests_total"))
    assert total == 10_001
