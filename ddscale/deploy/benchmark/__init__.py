"""Latency of an export, stage by stage and end to end, beside PyTorch on the same weights in the same run."""
