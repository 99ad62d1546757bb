"""Triton's matrix products, shared by the operators that multiply: tiles of tokens, tiles of weights, dequantisation."""
