"""The ring of buffers and its threads, on fills that are slow, uneven or wrong."""

from __future__ import annotations

import threading
import time

import pytest

from ddscale.stream.readers import ReadAhead


def take_all(ahead, taken):
    while True:
        taken.append(ahead.take())
        ahead.release()


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ddscale-reader")]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_handed_out_in_order_though_later_ones_finish_first(threads):
    def fill(number, slot):
        time.sleep(0.02 if number % 3 == 0 else 0)
        slot.append(number)
        return number

    slots = [[] for _ in range(4)]
    ahead = ReadAhead(fill, slots, threads, last=20)
    taken = []
    with pytest.raises(StopIteration):
        take_all(ahead, taken)
    assert taken == list(range(20))
    assert [sorted(slot) for slot in slots] == [list(range(i, 20, 4)) for i in range(4)]
    ahead.close()
    assert not readers()


def test_reads_no_further_ahead_than_there_are_free_slots():
    begun = []
    ahead = ReadAhead(lambda number, slot: begun.append(number), [None] * 3, threads=2)
    ahead.take()
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2], "slot 0 is still in the caller's hands"
    ahead.release()
    deadline = time.monotonic() + 10
    while len(begun) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2, 3]
    ahead.close()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_exception_arrives_at_its_number(threads):
    def fill(number, slot):
        if number == 5:
            raise KeyError("wrong")
        return number

    ahead = ReadAhead(fill, [None] * 4, threads)
    taken = []
    with pytest.raises(KeyError, match="wrong"):
        take_all(ahead, taken)
    assert taken == [0, 1, 2, 3, 4]
    ahead.close()
    assert not readers()


def test_closing_while_threads_wait_or_read():
    entered = threading.Event()

    def fill(number, slot):
        entered.set()
        time.sleep(0.05)
        return number

    ahead = ReadAhead(fill, [None] * 2, threads=3)
    assert entered.wait(10)
    ahead.close()
    assert not readers()
    ahead.close()


def test_closing_wakes_a_caller_that_waits():
    release = threading.Event()
    ahead = ReadAhead(lambda number, slot: release.wait(30), [None], threads=1)
    raised = []

    def wait():
        try:
            ahead.take()
        except RuntimeError as error:
            raised.append(str(error))

    caller = threading.Thread(target=wait)
    caller.start()
    closer = threading.Thread(target=ahead.close)
    closer.start()
    caller.join(10)
    release.set()
    closer.join(10)
    assert raised == ["The loader was closed while a batch was waited for."]
    assert not readers()
