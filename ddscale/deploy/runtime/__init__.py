"""Pictures from EEG with NumPy and an inference engine: no torch, no diffusers.

    from ddscale.deploy.runtime import EEGToImage
    model = EEGToImage.load("EXPORT/fp32", provider="cpu")
    pictures = model.generate(eeg, steps=20, guidance=3.0, seed=0, samples=2)

EEG is (windows, channels, samples) in µV at the manifest's rate; pictures are uint8 (windows x samples, H, W, 3).
"""

from ddscale.deploy.runtime.generation import EEGToImage, Encoder, SamplerError, Timings
from ddscale.deploy.runtime.graphs import PROVIDERS, ProviderError
from ddscale.deploy.runtime.noise import starting_noise
from ddscale.deploy.runtime.windows import EEGError

__all__ = [
    "PROVIDERS",
    "EEGError",
    "EEGToImage",
    "Encoder",
    "ProviderError",
    "SamplerError",
    "Timings",
    "starting_noise",
]
