"""Reasoning that models write between tags, before what they say."""
