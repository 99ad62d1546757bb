"""The engines a benchmark times, each in a process of its own behind the same few questions (see `peer.py`)."""
