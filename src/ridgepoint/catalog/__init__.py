"""FACTS: what hardware, models and prices are. Knows nothing of the layers above."""
