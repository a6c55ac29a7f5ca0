"""Pictures to latents and back, by AutoencoderKL and AutoencoderTiny."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from PIL import Image

from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.pictures import as_tensor
from ddscale.diffusion.tiny_vae import TinyVAE, load_taesd


def _small_vae(**settings):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        **settings,
    ).eval()


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_encoding_gives_the_gaussian_of_diffusers(pictures):
    vae = _small_vae(scaling_factor=0.5)
    codec = LatentCodec(vae)
    mean, std = codec.encode(pictures)
    expected = vae.encode(pictures).latent_dist
    assert mean.shape == (2, 4, 8, 6)
    assert torch.equal(mean, expected.mean)
    assert torch.equal(std, expected.std)
    assert torch.equal(codec.decode(codec.scaled(mean)), vae.decode(mean).sample)
    assert codec.downsampling == 4


@torch.no_grad()
def test_shift_and_scale_are_undone_by_decoding(pictures):
    vae = _small_vae(scaling_factor=0.36, shift_factor=0.12)
    codec = LatentCodec(vae)
    mean = codec.encode(pictures).mean
    torch.testing.assert_close(codec.scaled(mean), (mean - 0.12) * 0.36)
    torch.testing.assert_close(codec.decode(codec.scaled(mean)), vae.decode(mean).sample)


@torch.no_grad()
def test_a_tiny_autoencoder_encodes_to_one_point():
    codec = LatentCodec(AutoencoderTiny())
    mean, std = codec.encode(torch.zeros(1, 3, 16, 16))
    assert mean.shape == (1, 4, 2, 2)
    assert (std == 0).all()
    assert codec.decode(mean).shape == (1, 3, 16, 16)


def test_sides_that_do_not_divide_are_refused(pictures):
    with pytest.raises(ValueError, match="multiples of 4"):
        LatentCodec(_small_vae()).encode(pictures[..., :30, :])


@torch.no_grad()
@pytest.mark.parametrize("vae", [_small_vae(scaling_factor=0.5), TinyVAE(latent_channels=6, pooled=True)])
def test_a_codec_is_found_in_its_own_folder_and_in_a_pipelines(tmp_path, pictures, vae):
    expected = LatentCodec(vae).encode(pictures[..., :24, :]).mean
    for place in (tmp_path / "pipeline" / "vae", tmp_path / "alone"):
        vae.save_pretrained(place)
    for folder in (tmp_path / "pipeline", tmp_path / "alone"):
        assert torch.equal(LatentCodec.from_folder(folder).encode(pictures[..., :24, :]).mean, expected)


def test_folders_without_a_codec_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vae in"):
        LatentCodec.from_folder(tmp_path)
    UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None,
        norm_num_groups=4,
        cross_attention_dim=8,
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="UNet2DConditionModel"):
        LatentCodec.from_folder(tmp_path / "unet")


@torch.no_grad()
def test_taesd_files_are_read_into_the_same_network(tmp_path):
    """AutoencoderTiny's weights, written the way TAESD's own files name them."""
    torch.manual_seed(0)
    reference = AutoencoderTiny(latent_channels=16).eval()
    encoder = dict(reference.encoder.layers.state_dict())
    decoder = {
        f"{int(name.partition('.')[0]) + 1}.{name.partition('.')[2]}": value
        for name, value in reference.decoder.layers.state_dict().items()
    }
    torch.save(encoder, tmp_path / "tae_encoder.pth")
    with pytest.raises(ValueError, match=r"holds tae_encoder\.pth: leave one encoder and the decoder"):
        LatentCodec.from_folder(tmp_path)
    torch.save(decoder, tmp_path / "tae_decoder.pth")
    codec = LatentCodec.from_folder(tmp_path)
    picture = torch.rand(1, 3, 32, 32)
    latent = codec.encode(picture).mean
    assert torch.equal(latent, reference.encode(picture).latents)
    assert torch.equal(codec.decode(latent), reference.decode(latent).sample)
    with pytest.raises(ValueError, match=r"decoder\.pth"):
        load_taesd(tmp_path / "tae_decoder.pth", tmp_path / "tae_encoder.pth")


@pytest.mark.real
@torch.no_grad()
def test_a_real_tiny_vae_restores_real_photographs(shared):
    """taef2: 32 latent channels, an eighth of the resolution; 24.9 to 33 dB measured, least for the temple (china)."""
    import skimage.data as skimage_data
    import sklearn.datasets as sklearn_datasets

    models = shared / "models"
    codec = LatentCodec(load_taesd(models / "taef2_encoder.pth", models / "taef2_decoder.pth"))
    assert (codec.latent_channels, codec.downsampling) == (32, 8)
    photographs = [
        skimage_data.astronaut(),
        skimage_data.chelsea(),
        skimage_data.coffee(),
        skimage_data.rocket(),
        sklearn_datasets.load_sample_image("china.jpg"),
        sklearn_datasets.load_sample_image("flower.jpg"),
    ]
    pictures = torch.stack([as_tensor(Image.fromarray(photograph), 256) for photograph in photographs])
    latents = codec.encode(pictures).mean
    restored = codec.decode(codec.scaled(latents)).clamp(-1, 1)
    decibel = -10 * ((restored - pictures) / 2).square().mean(dim=(1, 2, 3)).log10()
    assert latents.shape == (6, 32, 32, 32)
    assert decibel.min() > 24.5
    assert decibel.mean() > 29


@pytest.mark.real
@torch.no_grad()
def test_a_real_tiny_vae_survives_saving(shared, tmp_path):
    vae = load_taesd(shared / "models/taef2_encoder.pth", shared / "models/taef2_decoder.pth")
    vae.save_pretrained(tmp_path)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    again = LatentCodec.from_folder(tmp_path)
    assert torch.equal(again.encode(picture).mean, LatentCodec(vae).encode(picture).mean)
    assert torch.equal(
        again.decode(again.encode(picture).mean), LatentCodec(vae).decode(again.encode(picture).mean)
    )
