"""TIME: the scheduler that serves, driven by predicted seconds instead of a model."""
