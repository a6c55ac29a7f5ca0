"""Fine-tune EEG to images: `deepspeed [launcher options] launchers/finetune.py RECIPE [--set key.path=value ...]`."""

from ddscale.diffusion.finetuning import finetune
from ddscale.diffusion.settings import FinetuneRecipe
from ddscale.launching import launch

if __name__ == "__main__":
    launch(__doc__, FinetuneRecipe, finetune)
