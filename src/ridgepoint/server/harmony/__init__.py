"""Harmony, the form in which gpt-oss writes: messages in channels, told apart by special tokens."""
