"""Checkpoints of fewer bits: formats, rounding, calibration, and the folder that is written."""
