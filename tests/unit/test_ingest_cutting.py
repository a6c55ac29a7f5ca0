"""Cells to records: everything is kept or listed, nothing twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ddscale.ingest.cutting import TOO_SHORT, Stretch, cut, main_reason
from ddscale.signal.quality import Cell
from ddscale.store.staging import RejectedStretch


def cells(verdicts, length: int = 10) -> list[Cell]:
    return [Cell(i * length, (i + 1) * length, verdict) for i, verdict in enumerate(verdicts)]


def test_good_cells_join_into_records_no_longer_than_allowed():
    records, rejected = cut(cells([(), (), (), (), ()]), 20, 5)
    assert records == [Stretch(0, 20), Stretch(20, 40), Stretch(40, 50)]
    assert rejected == []


def test_a_bad_cell_ends_a_record_and_is_listed_with_all_its_reasons():
    records, rejected = cut(cells([(), ("flat", "amplitude"), ("flat", "amplitude"), ()]), 20, 5)
    assert records == [Stretch(0, 10), Stretch(30, 40)]
    assert rejected == [Stretch(10, 30, ("flat", "amplitude"))]


def test_what_is_left_at_the_end_of_a_run_may_be_too_short():
    records, rejected = cut(cells([(), (), ()]), 25, 10)
    assert records == [Stretch(0, 25)]
    assert rejected == [Stretch(25, 30, (TOO_SHORT,))]
    assert cut(cells([(), (), ()]), 25, 5) == ([Stretch(0, 25), Stretch(25, 30)], [])


@given(
    st.lists(st.sampled_from([(), ("nan",), ("flat", "clipped")]), max_size=30),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_every_sample_is_in_one_place(verdicts, record, shortest):
    found = cut(cells(verdicts), max(record, shortest), min(record, shortest))
    stretches = sorted([*found[0], *found[1]], key=lambda stretch: stretch.start)
    assert [stretch.start for stretch in stretches] == [0, *(s.stop for s in stretches[:-1])][
        : len(stretches)
    ]
    assert sum(stretch.samples for stretch in stretches) == 10 * len(verdicts)
    assert all(min(record, shortest) <= stretch.samples <= max(record, shortest) for stretch in found[0])


def test_the_main_reason_is_that_of_most_of_the_time():
    def stretch(start, stop, reason):
        return RejectedStretch(start_s=start, stop_s=stop, reason=reason, detail=reason)

    reason, sentence = main_reason([stretch(0, 4, "flat"), stretch(4, 10, "nan"), stretch(10, 11, "flat")])
    assert reason == "nan"
    assert sentence == "has no stretch that is fit to keep: nan 6.0 s, flat 5.0 s."
