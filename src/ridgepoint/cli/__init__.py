"""The command line: one file per noun, each with `register(app)`; knows everything and computes nothing."""
