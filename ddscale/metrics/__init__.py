"""How good a result is: figures with their baselines beside them.

Pictures are judged by own code, which the tests hold against scikit-image, SciPy, torchmetrics, transformers and
published values. torchmetrics is not used itself because FID, Inception Score and LPIPS there need torch-fidelity
or torchvision and download their weights, its FID sums depend on the order of ranks, and its SSIM averages over
mirrored borders.
"""
