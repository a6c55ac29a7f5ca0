"""The toy Stable Diffusion: its data, its folder, and that it learns captions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

from ddscale.diffusion.clip import Clip, caption_states
from ddscale.diffusion.codec import LatentCodec
from ddscale.diffusion.toy import ToySettings, build_tokenizer, build_toy, save_toy
from ddscale.diffusion.toy_digits import caption_of, load_digits
from ddscale.diffusion.toy_training import ToyTrainingSettings, train_toy
from ddscale.metrics.class_judge import ClassJudge


def test_a_fifth_of_each_digit_is_held_out_always_the_same():
    digits = load_digits()
    assert digits.images.shape == (1797, 3, 32, 32)
    shares = [digits.held_out[digits.labels == label].mean() for label in range(10)]
    assert all(abs(share - 0.2) < 0.005 for share in shares)
    assert np.array_equal(digits.held_out, load_digits(16).held_out)
    # No picture is on both sides under another number.
    train = {image.tobytes() for image in digits.images[~digits.held_out]}
    assert not any(image.tobytes() in train for image in digits.images[digits.held_out])


def test_every_word_of_the_captions_is_one_token_and_any_text_can_be_said():
    captions = [caption_of(label) for label in range(10)]
    tokenizer = build_tokenizer(captions, length=8)
    for caption in captions:
        assert len(tokenizer.tokenize(caption)) == 3
    tokens = tokenizer(["", "Zürich in 1932!"], padding="max_length", truncation=True, max_length=8)
    assert tokens.input_ids[0] == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 7
    assert all(len(ids) == 8 for ids in tokens.input_ids)
    assert tokenizer.decode(tokenizer("a handwritten three").input_ids, skip_special_tokens=True) == (
        "a handwritten three"
    )


def test_the_folder_is_a_stable_diffusion_of_diffusers_with_its_clip(tmp_path):
    torch.manual_seed(0)
    toy = build_toy(["a handwritten three"], ToySettings(vae_channels=(8, 16), unet_channels=(16, 32)))
    save_toy(toy, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a handwritten three", num_inference_steps=2).images[0]
    assert image.size == (32, 32)
    whole = CLIPModel.from_pretrained(tmp_path / "clip")
    tokens = torch.tensor([pipeline.tokenizer("a handwritten three", padding="max_length").input_ids])
    assert torch.equal(
        pipeline.text_encoder(tokens).last_hidden_state, whole.text_model(tokens).last_hidden_state
    )
    expected = pipeline.encode_prompt(["a handwritten three", ""], "cpu", 1, False)[0]
    assert torch.equal(caption_states(tmp_path, ["a handwritten three", ""]), expected)
    assert Clip(tmp_path).of_images(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_pictures_of_another_size_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="image_size"):
        train_toy(tmp_path, np.zeros((4, 3, 28, 28), dtype=np.uint8), ["a"] * 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy trained for a third of the time, and what it was trained with."""
    digits = load_digits()
    images, labels = digits.images[~digits.held_out], digits.labels[~digits.held_out]
    settings = ToyTrainingSettings(clip_steps=150, vae_steps=130, unet_steps=170, tiny_steps=100)
    folder = tmp_path_factory.mktemp("trained")
    train_toy(folder, images, [caption_of(label) for label in labels], settings)
    return folder, ClassJudge(images, [str(label) for label in labels])


def test_captions_decide_the_digit(trained):
    folder, judge = trained
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    labels = np.arange(60) % 10
    images = pipeline(
        [caption_of(label) for label in labels],
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    drawn = (images.transpose(0, 3, 1, 2) * 255).round().astype(np.uint8)
    assert judge.right(drawn, [str(label) for label in labels]).mean() >= 0.75
    facts = json.loads((folder / "toy.json").read_text())
    assert "toy" in facts["what"]
    assert facts["pictures"] == 1438


def test_the_toys_clip_tells_held_out_digits_by_their_captions(trained):
    folder, _ = trained
    digits = load_digits()
    clip = Clip(folder)
    images = torch.from_numpy(digits.images[digits.held_out]).float() / 127.5 - 1
    similar = clip.of_images(images) @ clip.of_captions([caption_of(label) for label in range(10)]).T
    assert (similar.argmax(dim=1).numpy() == digits.labels[digits.held_out]).mean() >= 0.85


def test_the_tiny_autoencoder_decodes_the_vaes_latents(trained):
    folder, judge = trained
    digits = load_digits()
    images = torch.from_numpy(digits.images[digits.held_out]).float() / 127.5 - 1
    full, tiny = (LatentCodec.from_folder(path) for path in (folder, folder / "tiny"))
    latents = full.scaled(full.encode(images).mean)
    decoded = tiny.decode(latents)
    drawn = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert judge.right(drawn, [str(label) for label in digits.labels[digits.held_out]]).mean() >= 0.9
    assert torch.nn.functional.mse_loss(tiny.encode(images).mean, latents) < 0.1 * latents.var()
    count = [sum(p.numel() for p in codec.vae.decoder.parameters()) for codec in (full, tiny)]
    assert count[1] < 0.15 * count[0]


def test_training_is_deterministic(tmp_path):
    digits = load_digits(16)
    sizes = ToySettings(image_size=16, vae_channels=(8, 16), unet_channels=(16, 32))
    settings = ToyTrainingSettings(
        sizes=sizes, clip_steps=2, vae_steps=2, unet_steps=3, tiny_steps=2, batch_size=8
    )
    captions = [caption_of(label) for label in digits.labels[:20]]
    for name in ("first", "second"):
        torch.manual_seed(len(name))
        train_toy(tmp_path / name, digits.images[:20], captions, settings)
    weights = "diffusion_pytorch_model.safetensors"
    for part in ("vae", "unet", "tiny"):
        first, second = (tmp_path / name / part / weights for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_what_is_trained_already_is_not_trained_again(tmp_path):
    digits = load_digits(16)
    sizes = ToySettings(image_size=16, vae_channels=(8, 16), unet_channels=(16, 32))
    settings = ToyTrainingSettings(
        sizes=sizes, clip_steps=1, vae_steps=1, unet_steps=1, tiny_steps=1, batch_size=8
    )
    captions = [caption_of(label) for label in digits.labels[:20]]
    steps = []

    def count(part, step, of, loss):
        steps.append(part)

    def train(images, given):
        steps.clear()
        train_toy(tmp_path, images, captions, given, on_progress=count)
        return list(steps)

    assert train(digits.images[:20], settings) == ["clip", "vae", "unet", "tiny"]
    assert train(digits.images[:20], settings) == []
    assert len(train(digits.images[20:40], settings)) == 4
    assert len(train(digits.images[20:40], settings.model_copy(update={"seed": 1}))) == 4
    (tmp_path / "toy.json").unlink()
    assert len(train(digits.images[20:40], settings.model_copy(update={"seed": 1}))) == 4
