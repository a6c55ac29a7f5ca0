"""store -> batches: which window comes next, reading it, and turning it into the model's input.

`settings` is light; `order` loads grain and `loader`, `collation`, `device` load torch, so nothing is
gathered here: import from the module that owns the name, such as `ddscale.stream.loader.Loader`.
"""
