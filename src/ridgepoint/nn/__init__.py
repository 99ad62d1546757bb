"""Layers: parameters and the order in which kernel ops read them. No arithmetic of their own."""
