"""Quantisation, identity, and which record goes into which shard."""

from __future__ import annotations

import numpy as np
import pytest

from ddscale.store import layout, sealing
from ddscale.store.identity import salt_check, split_of, subject_hash
from ddscale.store.manifest import Montage, MontageChannel, StoreFormat
from ddscale.store.quantisation import INT16_LIMIT, Quantiser, count_clipped
from ddscale.store.staging import StagedRecord, StagedRecording


def store_format(**changes) -> StoreFormat:
    settings = {
        "backend": "tar",
        "sfreq": 100.0,
        "dtype": "int16",
        "step_uV": 0.1,
        "record_s": 10.0,
        "min_record_s": 1.0,
        "shard_mb": 0.05,
        "chunk_samples": 200,
        "channel_kinds": ["eeg"],
        "filters": {},
        "quality": {},
        "salt_check": salt_check("s"),
    }
    return StoreFormat(**settings | changes)


def test_quantisation_is_within_half_a_step_and_says_what_it_lost():
    signal_CT = np.random.default_rng(0).normal(0, 50, (3, 1000))
    quantiser = Quantiser("int16", 0.1)
    values_TC = quantiser(signal_CT)
    assert values_TC.dtype == np.dtype("<i2")
    assert values_TC.shape == (1000, 3)
    error = np.abs(values_TC * 0.1 - signal_CT.T).max()
    assert error <= 0.05 + 1e-5
    assert quantiser.largest_error == pytest.approx(error, abs=1e-5)
    assert quantiser.clipped == 0


def test_values_out_of_range_are_clipped_and_counted_not_wrapped():
    quantiser = Quantiser("int16", 0.1)
    values_TC = quantiser(np.array([[1e5, -1e5, 10.0, np.nan]]))
    assert values_TC[:, 0].tolist() == [INT16_LIMIT, -INT16_LIMIT, 100, 0]
    assert quantiser.clipped == 3
    assert count_clipped(values_TC) == 2
    assert quantiser.largest_error < 1e-3  # of the value within the range


def test_float32_is_kept_as_it_is():
    signal_CT = np.array([[1e5, 0.01]], np.float32)
    assert Quantiser("float32", 1.0)(signal_CT)[:, 0].tolist() == signal_CT[0].tolist()


def test_a_subject_hash_tells_datasets_and_salts_apart_and_hides_the_name():
    hashes = {
        subject_hash("a", "s1"),
        subject_hash("b", "s1"),
        subject_hash("a", "s2"),
        subject_hash("a", "s1", "x"),
    }
    assert len(hashes) == 4
    assert all(len(value) == 16 and "s1" not in value for value in hashes)


def test_splits_are_stable_and_near_their_fractions():
    subjects = [subject_hash("a", f"s{i}") for i in range(4000)]
    first = [split_of(subject, "salt", 0.2, 0.1) for subject in subjects]
    assert first == [split_of(subject, "salt", 0.2, 0.1) for subject in subjects]
    assert abs(first.count("val") / 4000 - 0.2) < 0.03
    assert abs(first.count("test") / 4000 - 0.1) < 0.03
    # Somebody who was in test stays there when the other fraction changes.
    assert all(
        split_of(s, "salt", 0.5, 0.1) == "test"
        for s, split in zip(subjects, first, strict=True)
        if split == "test"
    )


def staged(name: str, records: int, dataset: str = "a", channels: int = 2, dropped=()) -> StagedRecording:
    montage = Montage(
        channels=[MontageChannel(name=f"C{i}", standard=None, kind="eeg") for i in range(channels)]
    )
    width = channels - len(dropped)
    size = 1000 * width * 2
    return StagedRecording(
        dataset=dataset,
        recording=name,
        subject="00",
        status="kept",
        montage=montage,
        dropped=list(dropped),
        records=[
            StagedRecord(
                start=i * 1000,
                samples=1000,
                offset=i * size,
                length=size,
                crc32c=i,
                clipped=0,
                chunk_lengths=[size // 5] * 5,
            )
            for i in range(records)
        ],
    )


def plans(recordings, tmp_path, skips=(), **changes):
    packer = sealing.Packer(tmp_path, store_format(**changes))
    found = []
    for position, recording in enumerate(recordings):
        found += packer.add(recording, skips[position] if skips else 0)
    return found + list(packer.finish())


@pytest.mark.parametrize("backend", ["tar", "zarr"])
def test_every_record_gets_one_place_and_shards_keep_their_size(tmp_path, backend):
    found = plans([staged("r1", 20), staged("r2", 7), staged("r1", 5, "b")], tmp_path, backend=backend)
    rows = [row for plan in found for row in plan.rows]
    assert sorted(row["key"] for row in rows) == sorted(
        [f"a-r1-{i:06d}" for i in range(20)]
        + [f"a-r2-{i:06d}" for i in range(7)]
        + [f"b-r1-{i:06d}" for i in range(5)]
    )
    assert [plan.sequence for plan in found] == list(range(len(found)))
    assert all(plan.size <= 50_000 for plan in found)
    assert len({plan.path for plan in found}) == len(found) == 4
    for plan in found:
        assert {row["dataset"] for row in plan.rows} == {plan.path[0]}
        ends = [0]
        for row in plan.rows:
            assert row["offset"] >= ends[-1]
            ends.append(row["offset"] + row["length"])
        assert sum(piece.length for piece in plan.pieces) == plan.size


def test_adjoining_records_are_copied_in_one_go(tmp_path):
    (plan,) = plans([staged("r1", 10)], tmp_path, shard_mb=1.0)
    assert len(plan.pieces) == 1


def test_a_record_larger_than_a_shard_gets_one_of_its_own(tmp_path):
    assert [len(plan.rows) for plan in plans([staged("r1", 3)], tmp_path, shard_mb=0.001)] == [1, 1, 1]


def test_continuing_after_some_records_are_sealed_gives_the_same_shards(tmp_path):
    recordings = [staged("r1", 20), staged("r2", 7)]
    whole = plans(recordings, tmp_path)
    sealed = len(whole[0].rows)
    packer = sealing.Packer(tmp_path, store_format(), sealing.next_numbers([whole[0].path]), sequence=1)
    rest = [*packer.add(recordings[0], sealed), *packer.add(recordings[1], 0), *packer.finish()]
    assert rest == whole[1:]


def test_zarr_rows_of_other_widths_lie_in_groups_of_their_own(tmp_path):
    found = plans(
        [staged("r1", 2, channels=3), staged("r2", 2, channels=3, dropped=[1])], tmp_path, backend="zarr"
    )
    groups = [plan.path.split("/")[1] for plan in found]
    assert groups[1] == f"{groups[0]}-keep2"
    assert [row["row"] for row in found[1].rows] == [0, 1]


def test_a_zarr_store_that_grows_starts_at_a_fresh_shard(tmp_path):
    content = store_format(backend="zarr")
    first = next(iter(plans([staged("r1", 2)], tmp_path, backend="zarr")))
    packer = sealing.Packer(tmp_path, content, sealing.next_numbers([first.path]))
    (second,) = [*packer.add(staged("r2", 1)), *packer.finish()]
    assert layout.shard_number(second.path) == 1
    assert second.rows[0]["row"] == content.rows_per_shard(2)


def test_montages_are_told_apart_by_names_kinds_and_reference_but_not_by_digitised_positions():
    def montage(position=None, kind="eeg", reference=None):
        return Montage(
            channels=[MontageChannel(name="Cz", standard="Cz", kind=kind, position=position)],
            reference=reference,
        ).id

    assert montage() == montage((0.0, 0.0, 0.1))
    assert len({montage(), montage(kind="eog"), montage(reference="M1")}) == 3
