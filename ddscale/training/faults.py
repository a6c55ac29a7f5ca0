"""What goes wrong in a run: kept in faults.jsonl, counted, and made to happen on purpose by tests."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddscale.stream.loader import Loader
from ddscale.training.ranks import AgreedError
from ddscale.training.tolerance import Tolerated, append_line

INJECTION_VARIABLE = "DDSCALE_INJECT"
_FAULT = re.compile(r"(?P<kind>[a-z-]+)@rank=(?P<rank>\d+),step=(?P<first>\d+)(?:-(?P<last>\d+))?")
_KINDS = ("nan", "kill", "hang", "terminate", "kill-in-checkpoint", "fail-in-checkpoint")


class FaultLog:
    """faults.jsonl of a run: one line per event, written by rank 0, never shortened.

    An event that cannot be written is left out, with a warning the first time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tolerated = Tolerated()

    def write(self, kind: str, step: int, **details: Any) -> None:
        """Append one event."""
        event = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, "kind": kind, **details}
        with self._tolerated(str(self.path)):
            append_line(self.path, json.dumps(event))


class SkippedSteps:
    """Steps that were skipped one after another, and when that is enough."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = 0

    def applied(self) -> None:
        self.in_a_row = 0

    def skipped(self, step: int, where: str) -> None:
        """Count a skipped step; raises AgreedError, on every rank alike, when the limit is reached."""
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise AgreedError(
                f"step {step}: {self.in_a_row} steps in a row were skipped because the loss or its gradient was "
                f"not finite ({where}). The weights are those of the last good step. Lower optimiser.lr, lengthen "
                "schedule.warmup_steps, or look at the windows named in faults.jsonl; max_skipped_steps allows more."
            )


@dataclass(frozen=True)
class Injection:
    """Faults that a test orders by the environment variable DDSCALE_INJECT.

    `nan@rank=1,step=5-7` makes rank 1's loss NaN at steps 5 to 7 (the first step is 1); `kill` ends the process
    as kill -9 does, `terminate` sends it SIGTERM, `hang` keeps it from going on, `kill-in-checkpoint` kills it while
    that step's checkpoint is written, `fail-in-checkpoint` makes its disk full then. Several are joined by `;`.
    """

    faults: tuple[tuple[str, int, int], ...]

    @classmethod
    def from_environment(cls, rank: int) -> Injection:
        """This rank's faults; raises ValueError for one that cannot be understood."""
        faults = []
        for text in filter(None, os.environ.get(INJECTION_VARIABLE, "").split(";")):
            match = _FAULT.fullmatch(text.strip())
            if match is None or match["kind"] not in _KINDS:
                raise ValueError(
                    f"{INJECTION_VARIABLE}={text!r}: write KIND@rank=R,step=S, KIND one of {', '.join(_KINDS)}."
                )
            if int(match["rank"]) == rank:
                faults.append((match["kind"], int(match["first"]), int(match["last"] or match["first"])))
        return cls(tuple(faults))

    def at_step(self, step: int) -> None:
        """Called as a step begins."""
        if self._ordered("kill", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._ordered("terminate", step):
            os.kill(os.getpid(), signal.SIGTERM)
        if self._ordered("hang", step):
            time.sleep(24 * 3600)

    def in_loss(self, loss: torch.Tensor, step: int) -> torch.Tensor:
        """The loss as it is, or spoilt."""
        return loss * float("nan") if self._ordered("nan", step) else loss

    def in_checkpoint(self, step: int) -> None:
        """Called when a checkpoint's files are written and not yet published."""
        if self._ordered("kill-in-checkpoint", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._ordered("fail-in-checkpoint", step):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _ordered(self, kind: str, step: int) -> bool:
        return any(kind == ordered and first <= step <= last for ordered, first, last in self.faults)


class UnreadableRecords:
    """Which of the records that loaders could not read have been told already."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def new(self, *loaders: Loader | None) -> list[dict[str, Any]]:
        """Those met since this was asked last, for the fault log.

        When a loader has crossed a limit since, there is one more with `limit`: what is wrong and the remedy. The
        loader will give one step fewer than its peers from then on, so all ranks have to end together.
        """
        opened = [loader for loader in loaders if loader is not None]
        new = [fault for loader in opened for fault in loader.faults if id(fault) not in self._told]
        crossed = [loader for loader in opened if loader.beyond_limit and id(loader) not in self._told]
        self._told |= {id(one) for one in (*new, *crossed)}
        return [
            {"position": int(f.position), "dataset": f.dataset, "record": f.record, "cause": str(f.cause)}
            for f in new
        ] + [{"limit": loader.beyond_limit} for loader in crossed]

    def windows(self, *loaders: Loader | None) -> int:
        """Windows that this rank has replaced by zeros since it started."""
        return sum(loader.unreadable_windows for loader in loaders if loader is not None)
