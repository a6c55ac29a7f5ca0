"""How good a result is: figures with their baselines beside them."""
