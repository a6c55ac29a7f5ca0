"""ddscale: pretraining EEG encoders at very large scale, from recordings to images.

Importing this package is light: neither torch nor DeepSpeed is loaded until a stage asks for it.
"""

__version__ = "0.1.0"
