"""`python -m ddscale.deploy.serving FOLDER`: an exported folder as an HTTP service, or as a Triton model repository."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from ddscale.deploy.manifest import Manifest
from ddscale.deploy.runtime.graphs import PROVIDERS

_CONNECTIONS = 800


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ddscale.deploy.serving", description=__doc__)
    parser.add_argument("folder", help="one precision's folder of an export, with manifest.json")
    parser.add_argument(
        "--triton", metavar="REPOSITORY", help="write a Triton model repository there and stop"
    )
    parser.add_argument("--provider", default="cpu", choices=PROVIDERS)
    parser.add_argument("--decoder", default="full", choices=("full", "tiny"))
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as the engine likes")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 to be reached from other machines")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--places", type=int, default=32, help="requests that wait or are drawn; others get 429"
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one request")
    parser.add_argument("--head-timeout", type=float, default=10.0, help="seconds for a request's head")
    parser.add_argument(
        "--write-timeout", type=float, default=30.0, help="seconds for a client to take its answer"
    )
    parser.add_argument("--max-pictures", type=int, default=16, help="windows times samples of one request")
    parser.add_argument(
        "--no-check", action="store_true", help="do not draw the golden picture before the first"
    )
    arguments = parser.parse_args()
    try:
        Manifest.load(arguments.folder)
        if arguments.triton:
            from ddscale.deploy.serving.triton import write_repository

            print(write_repository(arguments.folder, arguments.triton, arguments.provider, arguments.decoder))
            return 0
        return _serve(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _serve(arguments: argparse.Namespace) -> int:
    try:
        import uvicorn

        from ddscale.deploy.runtime import EEGToImage
        from ddscale.deploy.serving.app import Limits, make_app
        from ddscale.deploy.serving.connections import guarded
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install fastapi uvicorn.") from None
    failures: list[Exception] = []

    def stop(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    def load() -> EEGToImage:
        model = EEGToImage.load(arguments.folder, arguments.provider, arguments.decoder, arguments.threads)
        if not arguments.no_check:
            model.check()
        return model

    app = make_app(
        load,
        Limits(
            places=arguments.places,
            timeout_s=arguments.timeout,
            write_timeout_s=arguments.write_timeout,
            max_pictures=arguments.max_pictures,
        ),
        on_failure=stop,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=arguments.host,
            port=arguments.port,
            http=guarded(_CONNECTIONS, arguments.head_timeout, arguments.write_timeout),
            h11_max_incomplete_event_size=16384,
            timeout_graceful_shutdown=30,
            log_level="info",
            access_log=False,
        )
    )

    def told_to_stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn answers what is under way, and then raises the signal again for the handler that it found: the system's
    # would end the process as if it had been killed, exit code 143.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, told_to_stop)
    server.run()
    if failures:
        raise ValueError(str(failures[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
