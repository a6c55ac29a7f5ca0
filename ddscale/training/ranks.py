"""The processes of a run: starting them up, and what they tell each other outside DeepSpeed's own traffic."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ddscale.training.tolerance import warn

# What a person running training can mend; anything else is a defect and shows its traceback.
USER_ERRORS = (ValueError, OSError, ModuleNotFoundError)

COLLECTIVE_LIMIT = "DEEPSPEED_TIMEOUT"
"""Environment variable, of all ranks alike: minutes that a rank waits for the others in a collective; 10 by default."""

# While rank 0 works alone the others hear of it this often, so that their wait does not count as one for a lost rank.
_SIGN_OF_LIFE_S = 5.0

# How gloo says that the limit was reached; NCCL ends the process and says so itself.
_TIMED_OUT = "Timed out waiting"

# How gloo and NCCL say that the other end of a connection is gone. (NCCL's other errors are of this node's making.)
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")


class AgreedError(ValueError):
    """A failure that every rank knows of, so that one of them is enough to tell it."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Add up `values` over all ranks, in place; on a GPU the host does not wait."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (picklable), by rank. For rare and small things: it is slow."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value` (picklable) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def on_main(self, work: Callable[[], None]) -> None:
        """Run `work` on rank 0 while the others wait, longer than the limit of a collective if need be.

        Raises AgreedError on every rank when it fails in a way that a user can mend.
        """
        with self.agreeing():
            if self.world_size == 1:
                work()
            elif self.is_main:
                done = threading.Event()
                # The work stays in this thread: a thread has its own current device, and signals come here.
                alive = threading.Thread(target=self._hear_of_main, args=(done,), name="sign of life")
                alive.start()
                try:
                    work()
                finally:
                    done.set()
                    alive.join()
            else:
                self._hear_of_main(None)

    def _hear_of_main(self, done: threading.Event | None) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        finished = False
        while not finished:
            mine = done is not None and done.wait(_SIGN_OF_LIFE_S)
            finished = bool(self.sum_(torch.tensor(float(mine), device=self.device)).item())

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """Either every rank gets through the block, or AgreedError is raised on every one.

        Without it a rank that fails alone leaves its peers waiting for it in their next collective. The block
        itself must not contain a collective that a failing rank would miss.
        """
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:
            failure = error
        said = self.gather(None if failure is None else (isinstance(failure, USER_ERRORS), describe(failure)))
        if failure is not None and not isinstance(failure, USER_ERRORS):
            raise failure
        failed = {rank: what for rank, what in enumerate(said) if what is not None}
        if not failed:
            return
        by_message: dict[str, list[int]] = {}
        for rank, (_, message) in failed.items():
            by_message.setdefault(message, []).append(rank)
        lines = [
            message if len(where) == self.world_size else f"rank {', '.join(map(str, where))}: {message}"
            for message, where in by_message.items()
        ]
        raise AgreedError("\n".join(lines)) from failure


def describe(error: BaseException) -> str:
    """An error as one line for a person, its kind named where the message alone would not do."""
    text = str(error)
    return text if isinstance(error, USER_ERRORS) and text else f"{type(error).__name__}: {text}"


def start() -> Ranks:
    """Join the process group that the launcher prepared; without a launcher, be the only rank."""
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    world_size = int(os.environ["WORLD_SIZE"])
    # DeepSpeed's launcher says LOCAL_SIZE, torchrun LOCAL_WORLD_SIZE.
    local_size = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", world_size)))
    cores = len(os.sched_getaffinity(0))
    if cores < local_size and local_rank == 0:
        warn(
            f"{local_size} ranks on {socket.gethostname()} share {cores} CPU cores, and reading needs some too: give "
            "the job more (Slurm: --cpus-per-task, for srun too), or start fewer ranks."
        )
    if "OMP_NUM_THREADS" not in os.environ:
        # Ranks that each take all cores slow each other down several times over.
        torch.set_num_threads(max(1, cores // local_size))
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{local_size} ranks on this node but {torch.cuda.device_count()} GPUs: start one rank per GPU."
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
    _check_limit()
    deepspeed = quiet_deepspeed()
    with contextlib.redirect_stdout(io.StringIO()):  # prints that it found its compiled kernel
        deepspeed.init_distributed(
            dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
        )
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, local_size, device)


@contextlib.contextmanager
def session() -> Iterator[Ranks]:
    """A launcher's shell: the ranks joined inside, and failures told the way a person can use.

    What a user can mend becomes one line on stderr and exit code 1, from one rank if all of them know of it.
    DDSCALE_TRACEBACK=1 shows where it arose.
    """
    me = f"rank {os.environ.get('RANK', '0')}"
    try:
        ranks = start()
        yield ranks
    except BaseException as error:
        if os.environ.get("DDSCALE_TRACEBACK") or isinstance(error, SystemExit):
            raise
        if isinstance(error, KeyboardInterrupt):
            sys.exit(130)
        if isinstance(error, AgreedError):
            if os.environ["RANK"] == "0":
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        if isinstance(error, USER_ERRORS):
            print(f"error: {me}: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        if isinstance(error, RuntimeError) and _TIMED_OUT in str(error):
            print(
                f"error: {me} has waited {_limit()} minutes for another rank. The warnings above and the run folder's "
                f"`stalled` say what each rank was doing; {COLLECTIVE_LIMIT} sets another limit, in minutes.",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(1)
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_PEER):
            said = "; ".join(str(error).splitlines())
            print(
                f"error: {me} lost contact with another rank, which ended first ({said})",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(1)
        raise
    # Not after a failure: with a peer gone, leaving the group in order may wait for it.
    dist.destroy_process_group()
    if ranks.device.type == "cpu":
        # A thread of gloo may still hold the last collective's tensors. Letting them go takes the interpreter's lock,
        # and a thread that asks for it once the interpreter ends aborts the process, after all its work is done.
        time.sleep(0.2)


def quiet_deepspeed() -> Any:
    """Import DeepSpeed without its remarks that nobody who runs training can act on."""
    remarks = logging.getLogger("DeepSpeed")
    hush = logging.Filter()
    # The optimiser it has not tested is the averaging AdamW, which our tests compare over all stages.
    said = ("Setting accelerator to CPU", "untested optimizer")
    hush.filter = lambda record: not any(s in record.getMessage() for s in said)  # type: ignore[method-assign]
    remarks.addFilter(hush)
    # DeepSpeed calls collectives by names that this torch is about to rename: one line per call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    import deepspeed

    return deepspeed


def _limit() -> str:
    return os.environ.get(COLLECTIVE_LIMIT, "10")


def _check_limit() -> None:
    if not _limit().isdecimal() or int(_limit()) == 0:
        raise ValueError(f"{COLLECTIVE_LIMIT} is {_limit()!r}: give whole minutes, such as 10.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
