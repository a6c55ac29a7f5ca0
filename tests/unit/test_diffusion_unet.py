"""Which parts of the U-Net train, and that a U-Net stays one of diffusers'."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from ddscale.diffusion.reference_sizes import SD15_UNET
from ddscale.diffusion.unet import (
    UNetTraining,
    add_time_condition,
    choose_trained,
    count_parameters,
    load_unet,
    merge_lora,
)

SAMPLE, TIMESTEPS, HIDDEN = (
    torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.tensor([10, 700]),
    torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)),
)


def _unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def _step(unet, **inputs):
    optimiser = torch.optim.AdamW(
        [p for p in unet.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    unet(SAMPLE, TIMESTEPS, HIDDEN, **inputs).sample.square().mean().backward()
    optimiser.step()
    return optimiser


def _state(unet):
    return {name: value.clone() for name, value in unet.state_dict().items()}


def test_by_default_cross_attention_trains_and_the_rest_stays_bitwise():
    unet = _unet()
    before = _state(unet)
    choose_trained(unet, UNetTraining())
    optimiser = _step(unet)
    changed = {name for name, value in unet.state_dict().items() if not torch.equal(value, before[name])}
    expected = {name for name in before if ".attn2." in name}
    assert changed == expected
    assert {n for n, p in unet.named_parameters() if p.grad is not None} == expected
    assert len(optimiser.state) == len(expected)


def test_no_part_is_trained_because_its_name_contains_anothers():
    """ResNet blocks have a norm2 and CLIP has layer_norm2: the original trained CLIP's by such a match."""
    unet = _unet()
    choose_trained(unet, UNetTraining(trained="attn2"))
    assert not any("norm" in name for name, weight in unet.named_parameters() if weight.requires_grad)


def test_none_trains_nothing_yet_lets_the_condition_learn():
    unet = _unet()
    choose_trained(unet, UNetTraining(trained="none"))
    hidden = HIDDEN.clone().requires_grad_()
    unet(SAMPLE, TIMESTEPS, hidden).sample.square().mean().backward()
    assert hidden.grad.abs().max() > 0
    assert all(p.grad is None for p in unet.parameters())
    assert count_parameters({"unet": unet})[-1].trained == 0


def test_all_trains_everything():
    unet = _unet()
    choose_trained(unet, UNetTraining(trained="all"))
    (part, total) = count_parameters({"unet": unet})
    assert part.frozen == total.frozen == 0
    assert total.trained == sum(p.numel() for p in unet.parameters())


def test_lora_trains_adapters_alone_and_merges_into_a_plain_unet(tmp_path):
    unet = _unet()
    before = _state(unet)
    projections = [
        module
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]
    expected = sum(3 * (module.in_features + module.out_features) for module in projections)
    choose_trained(unet, UNetTraining(trained="lora", lora_rank=3))
    assert count_parameters({"unet": unet})[-1].trained == expected
    assert count_parameters({"unet": unet})[-1].frozen == sum(v.numel() for v in before.values())

    untrained = unet(SAMPLE, TIMESTEPS, HIDDEN).sample.detach()
    torch.testing.assert_close(untrained, _unet()(SAMPLE, TIMESTEPS, HIDDEN).sample)
    # The second factor begins at zero, so two steps until both have changed.
    for _ in range(2):
        _step(unet)
    for name, value in unet.state_dict().items():
        if "lora" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name

    unet.eval()
    adapted = unet(SAMPLE, TIMESTEPS, HIDDEN).sample.detach()
    assert (adapted - untrained).abs().max() > 1e-3
    merge_lora(unet)
    assert _state(unet).keys() == before.keys()
    unet.save_pretrained(tmp_path)
    plain = UNet2DConditionModel.from_pretrained(tmp_path)
    torch.testing.assert_close(plain(SAMPLE, TIMESTEPS, HIDDEN).sample, adapted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_time_condition_begins_without_effect_and_loads_in_diffusers(tmp_path):
    unet, vector = _unet(), torch.randn(2, 16)
    plain = unet(SAMPLE, TIMESTEPS, HIDDEN).sample
    add_time_condition(unet, 16)
    assert torch.equal(unet(SAMPLE, TIMESTEPS, HIDDEN, class_labels=vector).sample, plain)

    unet.class_embedding.weight.normal_()
    changed = unet(SAMPLE, TIMESTEPS, HIDDEN, class_labels=vector).sample
    assert (changed - plain).abs().max() > 1e-3
    unet.save_pretrained(tmp_path)
    for loaded in (UNet2DConditionModel.from_pretrained(tmp_path), load_unet(tmp_path)):
        assert torch.equal(loaded(SAMPLE, TIMESTEPS, HIDDEN, class_labels=vector).sample, changed)


def test_the_time_condition_is_added_after_the_time_embeddings_linear_maps():
    unet, vector = _unet(), torch.randn(2, 16)
    add_time_condition(unet, 16)
    unet.class_embedding.weight.data.normal_()
    seen = {}
    block = unet.down_blocks[0].resnets[0]
    block.register_forward_pre_hook(lambda module, given: seen.update(embedding=given[1]))
    with torch.no_grad():
        unet(SAMPLE, TIMESTEPS, HIDDEN, class_labels=vector)
        time = unet.time_embedding(unet.time_proj(TIMESTEPS))
        torch.testing.assert_close(seen["embedding"], time + unet.class_embedding(vector))


@pytest.mark.parametrize(("trained", "expected"), [("none", True), ("attn2", True), ("lora", True)])
def test_the_time_conditions_projection_trains_with_the_unet(trained, expected):
    unet = _unet()
    add_time_condition(unet, 16)
    choose_trained(unet, UNetTraining(trained=trained, lora_rank=2))
    assert unet.class_embedding.weight.requires_grad is expected


def test_a_time_condition_does_not_replace_a_class_embedding():
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None,
        norm_num_groups=4,
        cross_attention_dim=8,
        num_class_embeds=10,
    )
    with pytest.raises(ValueError, match="class embedding"):
        add_time_condition(unet, 16)


def test_a_time_condition_of_another_width_is_refused():
    unet = _unet()
    add_time_condition(unet, 16)
    add_time_condition(unet, 16)
    with pytest.raises(ValueError, match="16 beside the time"):
        add_time_condition(unet, 12)


def test_folders_without_a_unet_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no unet in"):
        load_unet(tmp_path)


def test_stable_diffusion_15s_size_and_its_trained_parts():
    """859.5 M in all; cross-attention and the time condition are what the original trains (45.0 M with its norms)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
        choose_trained(unet, UNetTraining())
        attn2 = count_parameters({"unet": unet})[0]
        add_time_condition(unet, 768)
    choose_trained(unet, UNetTraining())
    with_time = count_parameters({"unet": unet})[0]
    norms = sum(
        p.numel() for name, p in unet.named_parameters() if "transformer_blocks" in name and ".norm2." in name
    )
    assert attn2.trained + attn2.frozen == 859_520_964
    assert with_time.trained - attn2.trained == 768 * 1280 + 1280
    assert abs((with_time.trained + norms) / 1e6 - 45.0) < 0.1
