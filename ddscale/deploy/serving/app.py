"""The HTTP service of one machine: POST EEG, get pictures.

POST /generate?steps=20&guidance=3&seed=0&samples=1&scheduler=dpmsolver%2B%2B&format=png
     body: a .npy file, (channels, samples) or (windows, channels, samples), µV
     200: image/png, for several pictures a grid, a row for each window; with format=zip one PNG each, in a zip
     4xx, 5xx: {"error": {"status": 422, "message": "cause: remedy."}}
GET /health (the process lives), /ready (pictures can be drawn, and of what), /metrics (Prometheus), /docs
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from ddscale.deploy.runtime import EEGError, EEGToImage, SamplerError, Timings
from ddscale.deploy.runtime.png import grid, png
from ddscale.deploy.serving.incoming import GoneError, Incoming
from ddscale.deploy.serving.metrics import CONTENT_TYPE, Metrics
from ddscale.deploy.serving.npy_body import BodyError, NpyBody
from ddscale.deploy.serving.parameters import Asked, Limits
from ddscale.deploy.serving.pictures import Pictures
from ddscale.deploy.serving.queue import AbandonedError, Place, Queue, QueueFullError

_log = logging.getLogger("ddscale.serving")
_CLIENT_GONE = 499
# Of a body that comes while the model, and so what a body may be, is not known.
_DRAIN_BYTES = 2**20


def make_app(
    load: Callable[[], EEGToImage],
    limits: Limits | None = None,
    on_failure: Callable[[Exception], None] = lambda error: None,
) -> FastAPI:
    """The service. load: called in a thread at start, so that /health answers meanwhile; on_failure: when it fails."""
    service = _Service(limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.load(load, on_failure))
        yield
        loading.cancel()
        await asyncio.to_thread(service.queue.close)

    # FastAPI's own pages load their scripts from the internet, which a machine that serves may not reach.
    app = FastAPI(title="ddscale: pictures from EEG", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service

    @app.exception_handler(RequestValidationError)
    async def wrong_parameters(request: Request, error: RequestValidationError) -> Response:
        named = [f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in error.errors()]
        service.metrics.answered(422, 0.0)
        return _error(422, f"{'; '.join(named)[:500]}. See /docs for the parameters.")

    @app.exception_handler(HTTPException)
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, f"{error.detail}: POST to /generate, or see /docs.")

    @app.post("/generate", response_class=Response)
    async def generate(request: Request, asked: Annotated[Asked, Query()]) -> Response:
        """Pictures from EEG: the body is a .npy file, see the parameters."""
        began = time.perf_counter()
        incoming = Incoming(request)
        response = await service.answer(request, incoming, asked)
        # What has not come in time is not waited for again.
        drained = response.status_code != 408 and await incoming.drain(service.longest_body())
        if response.status_code >= 400 and not drained:
            response.headers["Connection"] = "close"
        service.metrics.answered(response.status_code, time.perf_counter() - began)
        return response

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> Response:
        """Whether pictures can be drawn, and what the model takes."""
        if service.model is None:
            return _error(503, service.why_not_ready, retry_after_s=5)
        manifest = service.model.manifest
        return JSONResponse(
            {
                "status": "ready",
                "provider": service.model.provider,
                "precision": manifest.precision,
                "channels": manifest.channels,
                "samples": manifest.samples,
                "sfreq": manifest.sfreq,
                "unit": manifest.unit if manifest.normalisation is not None else "normalised",
                # What recordings must have had before they come here: the graph normalises, it does not filter.
                "preprocessing": manifest.preprocessing,
                "schedules": [{"scheduler": s.name, "steps": s.steps} for s in manifest.schedules],
                "limits": service.limits.model_dump(),
            }
        )

    @app.get("/docs")
    async def docs() -> Response:
        """What can be asked for, as text; /openapi.json has it for programs."""
        return PlainTextResponse(f"{__doc__}\nParameters of /generate:\n{Asked.described()}")

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        queue = service.queue
        text = service.metrics.text(service.model is not None, queue.taken, queue.places)
        return Response(text, media_type=CONTENT_TYPE)

    return app


class _Service:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.queue = Queue(limits.places)
        self.metrics = Metrics()
        self.model: EEGToImage | None = None
        self.why_not_ready = "the model is being loaded: come again in some seconds."

    def longest_body(self) -> int:
        """Bytes that no right body exceeds."""
        if self.model is None:
            return _DRAIN_BYTES
        return NpyBody.longest(self.model.manifest, self.limits.max_pictures)

    async def load(self, load: Callable[[], EEGToImage], on_failure: Callable[[Exception], None]) -> None:
        try:
            self.model = await asyncio.to_thread(load)
        except Exception as error:
            self.why_not_ready = f"the model could not be loaded: {error}"
            _log.error(self.why_not_ready)
            on_failure(error)

    async def answer(self, request: Request, incoming: Incoming, asked: Asked) -> Response:
        if (model := self.model) is None:
            return _error(503, self.why_not_ready, retry_after_s=5)
        try:
            self._check_head(request)
            model.table(asked.scheduler, asked.steps)
            with ExitStack() as held:
                place = held.enter_context(self.queue.place())
                response = await self._draw(incoming, asked, model, place)
                if isinstance(response, Pictures):
                    # Pictures that nobody takes are memory: the place is theirs until they are sent.
                    response.held = held.pop_all()
                return response
        except QueueFullError as full:
            return _error(
                429,
                f"all {self.queue.places} places are taken: come again in {full.retry_after_s} s.",
                full.retry_after_s,
            )
        except BodyError as error:
            return _error(error.status, str(error))
        except (EEGError, SamplerError) as error:
            return _error(422, str(error))
        except GoneError:
            return Response(status_code=_CLIENT_GONE)
        except Exception:
            _log.exception("drawing failed")
            return _error(500, "drawing failed: the service's log says why. The request may be sent again.")

    def _check_head(self, request: Request) -> None:
        twice = [name for name in request.query_params if len(request.query_params.getlist(name)) > 1]
        if twice:
            raise BodyError(422, f"{', '.join(twice)[:100]} is given more than once: give it once.")
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind.startswith("multipart/") or request.headers.get("content-encoding", "identity") != "identity":
            raise BodyError(
                415, "send the .npy itself as the body, neither as a form nor compressed (--data-binary)."
            )
        announced = request.headers.get("content-length", "0")
        longest = self.longest_body()
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > longest):
            raise BodyError(
                413,
                f"the body has {announced[:30]} bytes, at most {longest} ({self.limits.max_pictures} windows) are "
                "taken: send several requests.",
            )

    async def _draw(self, incoming: Incoming, asked: Asked, model: EEGToImage, place: Place) -> Response:
        deadline = time.monotonic() + self.limits.timeout_s
        body = NpyBody(model.manifest, self.limits.max_pictures)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                await _receive(incoming, body, self.limits.max_pictures, asked.samples)
        except TimeoutError:
            return _error(408, f"the body had not come after {self.limits.timeout_s:g} s: send it again.")
        eeg = body.array()

        def work() -> tuple[bytes, Timings]:
            pictures = model.generate(
                eeg,
                steps=asked.steps,
                scheduler=asked.scheduler,
                guidance=asked.guidance,
                seed=asked.seed,
                samples=asked.samples,
                sfreq=asked.sfreq,
                unit=asked.unit,
                on_step=place.check,
            )
            return _packed(pictures, asked), model.timings

        drawing = place.submit(work)
        leaving = asyncio.ensure_future(incoming.gone())
        left_s = max(0.0, deadline - time.monotonic())
        try:
            await asyncio.wait({drawing, leaving}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if drawing.cancelled():
                raise AbandonedError
            if drawing.done():
                packed, timings = drawing.result()
                self.metrics.drew(timings)
                self.queue.took(timings.total)
                kind = f"{'image' if asked.format == 'png' else 'application'}/{asked.format}"
                return Pictures(packed, kind, self.limits.write_timeout_s)
            if leaving.done():
                raise GoneError
            return _error(
                504,
                f"no picture after {self.limits.timeout_s:g} s: ask for fewer steps or samples, or come again when "
                "the service has less to do.",
                self.queue.wait_s(),
            )
        except AbandonedError:
            return _error(503, "the service is being stopped: send the request again.", retry_after_s=5)
        finally:
            leaving.cancel()
            drawing.cancel()


async def _receive(incoming: Incoming, body: NpyBody, max_pictures: int, samples: int) -> None:
    while not incoming.ended:
        if piece := await incoming.piece():
            body.feed(piece)
        if body.windows * samples > max_pictures:
            raise BodyError(
                413,
                f"{body.windows} windows with {samples} samples each are more than the {max_pictures} pictures that "
                "one request may ask for: send several.",
            )


def _packed(pictures: np.ndarray, asked: Asked) -> bytes:
    if asked.format == "png":
        return png(pictures[0] if len(pictures) == 1 else grid(pictures, columns=asked.samples))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(f"{number // asked.samples}-{number % asked.samples}.png", png(picture))
    return buffer.getvalue()


def _error(status: int, message: str, retry_after_s: int | None = None) -> Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse({"error": {"status": status, "message": message}}, status, headers)
