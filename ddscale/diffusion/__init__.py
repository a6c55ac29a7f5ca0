"""From EEG to images: fine-tuning with Stable Diffusion's cross-attention, and generating.

Built on diffusers' classes; import from the module that owns a name, such as `ddscale.diffusion.pipeline`.
"""

import os

# As they load, both libraries warn of a missing torchvision, which their Pillow-backed processors do without.
# Nobody can act on that; whoever sets these variables to something else sees it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
