"""ACTIONS: batch to tensors to tokens, in a process of its own."""
