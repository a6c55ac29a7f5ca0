"""Pretrain an encoder: `deepspeed [launcher options] launchers/pretrain.py RECIPE [--set key.path=value ...]`."""

from ddscale.launching import launch
from ddscale.training.pretraining import pretrain
from ddscale.training.settings import PretrainRecipe

if __name__ == "__main__":
    launch(__doc__, PretrainRecipe, pretrain)
