"""TRAINING: corpus, tokenizer, recipe, loop, load balancing, checkpoints, export. The engine never imports this package."""
