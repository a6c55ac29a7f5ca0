"""Sizes: presets as published, any field replaced, and refusals that say what would fit."""

from __future__ import annotations

import pytest
import torch

from ddscale.models import MAEConfig, MaskedAutoencoder
from ddscale.models.config import PRESETS
from ddscale.models.flops import executed_training_flops, forward_flops, training_flops
from ddscale.recipes import RecipeError, check

SMALL = {"n_channels": 6, "n_samples": 32, "width": 16, "depth": 2, "heads": 2,
         "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}  # fmt: skip


def parameters(config: MAEConfig) -> tuple[int, int]:
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder))
    return encoder, decoder


def test_dreamdiffusion_has_the_originals_sizes():
    assert parameters(MAEConfig(preset="dreamdiffusion")) == (151_769_088, 13_412_864)


@pytest.mark.parametrize(
    ("preset", "least", "most"),
    [
        ("demo", 1e5, 1e6),
        ("vit_l", 300e6, 335e6),
        ("vit_h", 600e6, 670e6),
        ("2b", 2e9, 2.1e9),
        ("7b", 7e9, 7.4e9),
    ],
)
def test_presets_have_about_the_size_their_name_says(preset, least, most):
    assert least < sum(parameters(MAEConfig(preset=preset))) < most


def test_every_preset_is_a_whole_configuration_that_survives_a_recipe():
    for preset in PRESETS:
        config = MAEConfig(preset=preset)
        assert MAEConfig.model_validate(config.model_dump(mode="json")) == config
        assert (config.n_tokens, config.n_visible, config.n_masked) == (128, 32, 96)


def test_a_field_beside_the_preset_replaces_the_presets():
    config = MAEConfig(preset="dreamdiffusion", depth=12, mask_ratio=0.1)
    assert (config.width, config.depth, config.n_visible) == (1024, 12, 115)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"n_samples": 30}, "n_samples 30 is not a multiple of patch 4: use n_samples 28"),
        ({"heads": 3}, "heads 3 does not divide width 16: the nearest that does is 2"),
        ({"decoder_width": 9, "decoder_heads": 3}, "decoder_width 9 is odd.*use 10"),
        ({"mask_ratio": 0.95}, "leaves 0 of 8 tokens visible"),
        ({"mlp_ratio": 0.1}, "mlp_ratio 0.1 of decoder_width 8 leaves no hidden unit: use 0.125"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_a_remedy(over, message):
    with pytest.raises(ValueError, match=message):
        MAEConfig(**{**SMALL, **over})


def test_recipe_mistakes_are_explained():
    with pytest.raises(RecipeError, match="preset 'vit_xl' is not known: use one of demo, dreamdiffusion"):
        check({"preset": "vit_xl"}, MAEConfig, "recipe")
    with pytest.raises(RecipeError, match="widht: unknown key. Did you mean `width`"):
        check({"preset": "demo", "widht": 64}, MAEConfig, "recipe")


def test_flops_are_the_known_ones_of_the_original():
    # 41.5 and 120.6 GFLOP count the embedding of masked patches and the prediction of visible ones, which are
    # not done here: 1 % less.
    assert training_flops(MAEConfig(preset="dreamdiffusion")) == pytest.approx(41.5e9, rel=0.01)
    assert training_flops(MAEConfig(preset="dreamdiffusion", mask_ratio=0.1)) == pytest.approx(
        120.6e9, rel=0.005
    )


@pytest.mark.parametrize("over", [{}, {"mask_ratio": 0.5, "mlp_ratio": 2.5}])
def test_flops_are_those_pytorch_counts(over):
    from torch.utils.flop_counter import FlopCounterMode

    config = MAEConfig(**{**SMALL, **over})
    x, seeds = torch.randn(3, 32, 6), torch.arange(3)
    model = MaskedAutoencoder(config)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(x, seeds)
    assert counter.get_total_flops() == 3 * forward_flops(config)
    assert training_flops(config) == 3 * forward_flops(config)


def test_activation_checkpointing_repeats_the_blocks_alone():
    from torch.utils.flop_counter import FlopCounterMode

    plain = MAEConfig(**SMALL)
    again = plain.model_copy(update={"activation_checkpointing": True})
    assert training_flops(again) == training_flops(plain) == executed_training_flops(plain)
    model = MaskedAutoencoder(again)
    counts = []
    for config in (plain, again):
        for part in (model.encoder, model.decoder):
            part.transformer.activation_checkpointing = config.activation_checkpointing
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            model(torch.randn(1, 32, 6), torch.arange(1)).sum_squared_error.backward()
        counts.append(counter.get_total_flops())
    assert counts[1] - counts[0] == executed_training_flops(again) - training_flops(again)
