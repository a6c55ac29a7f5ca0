"""The exported toy in the runtime: the pictures that PyTorch draws, in a process and an environment without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deploying import CHANNELS, ENCODER_SIZES

from ddscale.deploy.runtime import EEGToImage, starting_noise
from ddscale.diffusion.generate import seed_of
from ddscale.diffusion.pipeline import EEGToImagePipeline, scheduler_named

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ENCODER_SIZES["n_samples"]
SEED = 11


def eeg(windows):
    random = np.random.default_rng(4)
    scales = np.geomspace(5, 60, CHANNELS)[:, None]
    return (random.standard_normal((windows, CHANNELS, SAMPLES)) * scales + 7).astype(np.float32)


def as_the_encoder_takes_it(windows_BCT):
    """z-scores, channels repeated to the encoder's, time first: what the stream does to windows."""
    x = windows_BCT.astype(np.float64)
    x = (x - x.mean(2, keepdims=True)) / x.std(2, keepdims=True)
    x = x.clip(-15, 15)[:, np.arange(ENCODER_SIZES["n_channels"]) % CHANNELS]
    return torch.from_numpy(x.transpose(0, 2, 1).astype(np.float32))


@pytest.fixture(scope="module")
def pipeline(toy_export):
    pipeline = EEGToImagePipeline.from_pretrained(toy_export / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folder(toy_export):
    return toy_export / "export" / "fp32"


@pytest.fixture(scope="module")
def model(folder):
    return EEGToImage.load(folder)


def drawn_by_torch(pipeline, windows, scheduler, steps, guidance, **start):
    pipeline.scheduler = scheduler_named(scheduler, pipeline.scheduler)
    images = pipeline(
        as_the_encoder_takes_it(windows),
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_images_per_eeg=2,
        **start,
    ).images
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize(("scheduler", "steps"), [("dpmsolver++", 4), ("ddim", 4), ("lcm", 3)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_are_those_of_ddscale_generate(model, pipeline, scheduler, steps, guidance):
    windows = eeg(2)
    # As ddscale.diffusion.generate seeds them; LCM goes on drawing from the same generators.
    generators = [torch.Generator().manual_seed(seed_of(SEED, w, s)) for w in range(2) for s in range(2)]
    expected = drawn_by_torch(pipeline, windows, scheduler, steps, guidance, generator=generators)
    pictures = model.generate(windows, steps, scheduler, guidance, SEED, samples=2)
    assert expected.std() > 10
    assert np.abs(pictures - expected).max() <= 1


def test_torch_given_the_runtime_noise_draws_the_same(model, pipeline):
    latent = model.manifest.latent
    noise = starting_noise(SEED, [0, 1], 2, (latent.channels, latent.height, latent.width))
    expected = drawn_by_torch(pipeline, eeg(2), "ddim", 4, 3.0, latents=torch.from_numpy(noise))
    assert np.abs(model.generate(eeg(2), 4, "ddim", 3.0, SEED, samples=2) - expected).max() <= 1


def test_openvino_draws_them_too(model, folder):
    ours = model.generate(eeg(2), seed=SEED).astype(int)
    assert np.abs(EEGToImage.load(folder, "openvino").generate(eeg(2), seed=SEED) - ours).max() <= 1


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_the_golden_picture_is_drawn_again(folder, provider):
    assert 0 < EEGToImage.load(folder, provider).check() < 1e-4


def test_an_engine_that_computes_something_else_is_found_out(folder):
    model = EEGToImage.load(folder)
    run = model._encoder.run
    model._encoder.run = lambda inputs: {name: 1.02 * value for name, value in run(inputs).items()}
    with pytest.raises(
        ValueError, match=r"on cpu draws other latents than PyTorch did: .* Do not use it here"
    ):
        model.check()


def test_a_decoder_that_computes_something_else_is_found_out(folder):
    model = EEGToImage.load(folder)
    run = model._decoder.run
    model._decoder.run = lambda inputs: {
        name: value * np.float32("nan") for name, value in run(inputs).items()
    }
    with pytest.raises(ValueError, match=r"draws other pictures \(vae_decoder\) than PyTorch did"):
        model.check()


# What a machine runs that has nothing but NumPy and an engine: every import that is refused fails loudly.
ALONE = """
import importlib.abc, json, sys

UNWANTED = {"torch", "diffusers", "deepspeed", "transformers", "pydantic", "mne", "scipy", "onnx", "PIL", "yaml"}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in UNWANTED:
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Refuse())
import numpy as np
from ddscale.deploy.runtime import EEGToImage
from ddscale.deploy.runtime.png import grid, png

folder, eeg, out = sys.argv[1:]
model = EEGToImage.load(folder)
pictures = model.generate(np.load(eeg), seed=11, samples=2)
png(grid(pictures, 2))
np.save(out, pictures)
print(json.dumps(sorted(UNWANTED & {name.split(".")[0] for name in sys.modules})))
"""


def alone(python, folder, work):
    np.save(work / "eeg.npy", eeg(2))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [python, "-c", ALONE, str(folder), str(work / "eeg.npy"), str(work / "pictures.npy")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=work,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    return np.load(work / "pictures.npy")


def test_no_torch_is_imported(model, folder, tmp_path):
    np.testing.assert_array_equal(
        alone(sys.executable, folder, tmp_path), model.generate(eeg(2), seed=SEED, samples=2)
    )


def test_an_environment_without_torch(model, folder, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
    import onnxruntime

    wanted = [f"numpy=={np.__version__}", f"onnxruntime=={onnxruntime.__version__}"]
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted],
        capture_output=True,
        text=True,
    )
    if installed.returncode and os.environ.get("CI") != "true":
        pytest.skip(f"pip could not install {' '.join(wanted)}: {installed.stderr.strip()[-300:]}")
    assert installed.returncode == 0, installed.stderr
    listed = subprocess.run(
        [str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" not in listed
    pictures = alone(str(python), folder, tmp_path)
    np.testing.assert_array_equal(pictures, model.generate(eeg(2), seed=SEED, samples=2))
