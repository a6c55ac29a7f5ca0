"""Does it work? Encoders probed on labelled trials, held-out EEG reconstructed, variants of a recipe compared.

Numbers come with what they have to be held against: chance, shuffled labels, methods that learn nothing, and
intervals. Recipes' models (`probe_recipe`, `grid_recipe`) are light; the other modules load torch.
"""
