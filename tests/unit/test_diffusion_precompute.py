"""Latents and CLIP features computed once: right, resumable, and never those of other weights."""

from __future__ import annotations

import hashlib
import io
import shutil

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from ddscale.diffusion import precompute as module
from ddscale.diffusion.clip import Clip
from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.pictures import as_tensor, crops_of, decode
from ddscale.diffusion.precompute import Features, PrecomputeSettings, precompute, prepare
from ddscale.diffusion.toy import ToySettings, build_toy, save_toy

SETTINGS = PrecomputeSettings(image_size=32, crops=3, batch_size=5)
CAPTIONS = ["a handwritten three", "a handwritten seven"]


class Folder:
    """Pictures in memory that count how often they are decoded."""

    def __init__(self, n=10):
        generator = np.random.default_rng(0)
        self.files = [self._file(generator.integers(0, 256, (40, 48, 3))) for _ in range(n)]
        self.names = [f"picture-{row}" for row in range(n)]
        self.captions = [CAPTIONS[row % 2] for row in range(n)]
        self.sha256 = [hashlib.sha256(file).hexdigest() for file in self.files]

    @staticmethod
    def _file(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
        return buffer.getvalue()

    def read(self, row):
        return self.files[row]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory):
    torch.manual_seed(0)
    settings = ToySettings(vae_channels=(8, 8, 16), unet_channels=(16, 32))
    return save_toy(build_toy(CAPTIONS, settings), tmp_path_factory.mktemp("toy") / "sd")


@pytest.fixture
def models(toy_folder):
    return LatentCodec.from_folder(toy_folder), Clip(toy_folder)


@pytest.fixture
def decoded(monkeypatch):
    """Names of the pictures that were decoded, as they are."""
    names = []

    def counting(data, name):
        names.append(name)
        return decode(data, name)

    monkeypatch.setattr(module, "decode", counting)
    return names


@torch.no_grad()
def test_stored_views_are_what_the_models_give(models, tmp_path):
    codec, clip = models
    pictures = Folder()
    features = precompute(pictures, codec, clip, tmp_path, SETTINGS)
    rows, crops = torch.tensor([7, 0, 7]), torch.tensor([0, 2, 1])
    views = features.views(rows, crops)
    for number, (row, crop) in enumerate(zip(rows.tolist(), crops.tolist(), strict=True)):
        view = as_tensor(decode(pictures.files[row], ""), 32, crops_of(row, 3, 0.8, 0)[crop])[None]
        mean, std = codec.encode(view)
        torch.testing.assert_close(views.mean[number], mean[0])
        torch.testing.assert_close(views.std[number], std[0])
        torch.testing.assert_close(views.image[number], clip.of_images(view)[0])
        torch.testing.assert_close(views.caption[number], clip.of_captions([pictures.captions[row]])[0])
    torch.testing.assert_close(views.image.norm(dim=1), torch.ones(3))
    assert (len(features), features.crops) == (10, 3)


def test_run_again_nothing_is_computed(models, tmp_path, decoded):
    precompute(Folder(), *models, tmp_path, SETTINGS)
    decoded.clear()
    precompute(Folder(), *models, tmp_path, SETTINGS)
    assert decoded == []


def test_after_an_interruption_only_what_is_missing_is_computed(models, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_SHARD", 4)

    class Interrupted(Folder):
        def read(self, row):
            if row == 4:
                raise KeyboardInterrupt
            return super().read(row)

    with pytest.raises(KeyboardInterrupt):
        precompute(Interrupted(), *models, tmp_path, SETTINGS)
    assert set(decoded) == {f"picture-{row}" for row in range(4)}
    decoded.clear()
    features = precompute(Folder(), *models, tmp_path, SETTINGS)
    assert set(decoded) == {f"picture-{row}" for row in range(4, 10)}
    whole = precompute(Folder(), *models, tmp_path / "at once", SETTINGS)
    everything = torch.arange(10), torch.zeros(10, dtype=torch.int64)
    for resumed, at_once in zip(features.views(*everything), whole.views(*everything), strict=True):
        torch.testing.assert_close(resumed, at_once)


def test_changed_captions_are_computed_again(models, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_SHARD", 4)
    precompute(Folder(10), *models, tmp_path, SETTINGS)
    decoded.clear()
    pictures = Folder(10)
    pictures.captions[1] = "a handwritten seven, differently"
    features = precompute(pictures, *models, tmp_path, SETTINGS)
    assert set(decoded) == {f"picture-{row}" for row in (0, 1, 2, 3)}
    assert len(features) == 10
    _, clip = models
    caption = features.views(torch.tensor([1]), torch.tensor([0])).caption
    torch.testing.assert_close(caption, clip.of_captions([pictures.captions[1]]))


def test_other_weights_or_settings_get_another_folder(models, tmp_path, decoded):
    codec, clip = models
    first = precompute(Folder(), codec, clip, tmp_path, SETTINGS)
    other_settings = precompute(Folder(), codec, clip, tmp_path, SETTINGS.model_copy(update={"seed": 1}))
    with torch.no_grad():
        next(clip.model.parameters()).add_(1e-3)
    decoded.clear()
    other_weights = precompute(Folder(), codec, clip, tmp_path, SETTINGS)
    assert len({f.path for f in (first, other_settings, other_weights)}) == 3
    assert len(set(decoded)) == 10
    assert first.facts["clip"] != other_weights.facts["clip"]
    assert first.facts["vae"] == other_weights.facts["vae"]
    # How many views go through the models at once is no part of the results.
    more_at_once = SETTINGS.model_copy(update={"batch_size": 30})
    assert precompute(Folder(), codec, clip, tmp_path, more_at_once).path == other_weights.path


def test_another_list_of_pictures_gets_another_folder(models, tmp_path):
    paths = {precompute(Folder(n), *models, tmp_path, SETTINGS).path for n in (8, 10)}
    assert len(paths) == 2


def test_ranks_share_the_pictures_and_give_what_one_gives(models, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_SHARD", 4)
    pictures = Folder(10)
    path = module.prepare(pictures, *models, tmp_path / "shared", SETTINGS)
    shares = []
    for rank in range(2):
        decoded.clear()
        module.fill(path, pictures, *models, SETTINGS, rank=rank, world_size=2)
        shares.append(set(decoded))
    assert not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 10
    alone = precompute(pictures, *models, tmp_path / "alone", SETTINGS)
    everything = torch.arange(10), torch.zeros(10, dtype=torch.int64)
    for ours, theirs in zip(Features(path).views(*everything), alone.views(*everything), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_views_are_the_same_whether_in_memory_or_read_from_disk(models, tmp_path, monkeypatch):
    in_memory = precompute(Folder(), *models, tmp_path, SETTINGS)
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    on_disk = Features(in_memory.path)
    asked = torch.tensor([3, 9, 3]), torch.tensor([1, 0, 2])
    for ours, theirs in zip(on_disk.views(*asked), in_memory.views(*asked), strict=True):
        assert torch.equal(ours, theirs)


def test_plain_zarr_reads_and_explains_it(models, tmp_path):
    features = precompute(Folder(), *models, tmp_path, SETTINGS.model_copy(update={"dtype": "float16"}))
    group = zarr.open_group(features.path, mode="r")
    assert group["mean"].shape == (10, 3, 4, 8, 8)
    assert group["mean"].dtype == np.float16
    assert group.attrs["settings"]["image_size"] == 32


def test_a_picture_that_cannot_be_decoded_is_named(models, tmp_path):
    pictures = Folder()
    pictures.files[6] = b"not a picture"
    with pytest.raises(ValueError, match="picture-6"):
        precompute(pictures, *models, tmp_path, SETTINGS)


@pytest.mark.parametrize("array", ["mean", "std", "image", "caption"])
def test_a_lost_shard_is_refused_and_not_read_as_zeros(models, tmp_path, array):
    path = precompute(Folder(70), *models, tmp_path, SETTINGS).path
    assert len(Features(path)) == 70
    shutil.rmtree(path / array / "c" / "1")
    with pytest.raises(
        ValueError, match=rf"is not complete, it lacks {array}: 1 of 2 shards.*Remove it and run"
    ):
        Features(path)


def test_features_that_are_not_finished_are_refused(models, tmp_path):
    path = prepare(Folder(), *models, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="it lacks 10 of 10 pictures"):
        Features(path)


def test_clip_folders_are_checked(toy_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no whole CLIP in.*Set clip_model to"):
        Clip(tmp_path)
    with pytest.raises(ValueError, match="CLIPTextModel"):
        Clip(toy_folder / "text_encoder")
