"""Floating-point operations of the models: a multiplication and its addition count as two.

Matrix products alone (norms, GELU, softmax and the loss are below one percent). Counted as computed: masked
patches are not embedded, visible ones are not predicted.
"""

from __future__ import annotations

from ddscale.models.config import MAEConfig


def forward_flops(config: MAEConfig) -> int:
    """One window through the autoencoder, forward."""
    return _autoencoder_blocks(config) + _autoencoder_ends(config)


def training_flops(config: MAEConfig) -> int:
    """One window's training step, forward and backward, without what activation checkpointing repeats.

    The backward pass counts as twice the forward one. This is the number for model FLOPs utilisation.
    """
    return 3 * forward_flops(config)


def executed_training_flops(config: MAEConfig) -> int:
    """What the hardware does for training_flops: with activation checkpointing, the blocks' forward runs twice.

    All but each block's last product: its result is not needed again, so PyTorch stops before it.
    """
    if not config.activation_checkpointing:
        return training_flops(config)
    return training_flops(config) + _autoencoder_blocks(config) - _autoencoder_last_products(config)


def _autoencoder_blocks(config: MAEConfig) -> int:
    encoder = _blocks(1 + config.n_visible, config.width, config.depth, config.mlp_ratio)
    return encoder + _blocks(
        1 + config.n_tokens, config.decoder_width, config.decoder_depth, config.mlp_ratio
    )


def _autoencoder_last_products(config: MAEConfig) -> int:
    encoder = (1 + config.n_visible) * config.depth * config.width * int(config.width * config.mlp_ratio)
    width = config.decoder_width
    decoder = (1 + config.n_tokens) * config.decoder_depth * width * int(width * config.mlp_ratio)
    return 2 * (encoder + decoder)


def _autoencoder_ends(config: MAEConfig) -> int:
    embedding = config.n_visible * config.patch_values * config.width
    to_decoder = (1 + config.n_visible) * config.width * config.decoder_width
    prediction = config.n_masked * config.decoder_width * config.patch_values
    return 2 * (embedding + to_decoder + prediction)


def _blocks(n_tokens: int, width: int, depth: int, mlp_ratio: float) -> int:
    linears = n_tokens * width * (4 * width + 2 * int(width * mlp_ratio))  # qkv, proj; fc1, fc2
    attention = 2 * n_tokens * n_tokens * width  # scores; weighted sum
    return 2 * depth * (linears + attention)
