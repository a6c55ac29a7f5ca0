"""Work of rank 0 alone, such as writing a large model, for longer than a collective waits."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ddscale.training import ranks as ranks_module
from ddscale.training.ranks import AgreedError, Ranks

pytestmark = pytest.mark.distributed


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=3),
    )  # fmt: skip
    ranks_module._SIGN_OF_LIFE_S = 0.2
    me = Ranks(rank, 2, rank, 2, torch.device("cpu"))

    def work() -> None:
        time.sleep(8)
        (Path(folder) / "by").write_text(str(rank))

    me.on_main(work)
    assert (Path(folder) / "by").read_text() == "0"

    def fail() -> None:
        raise OSError("no space")

    with pytest.raises(AgreedError, match="rank 0: no space"):
        me.on_main(fail)
    assert me.gather(rank) == [0, 1]
    dist.destroy_process_group()


def test_work_of_rank_0_may_take_longer_than_a_collective(tmp_path):
    mp.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)
