"""Maps from a family's `config.json` and tensor names to `ModelSpec` and the decoder's parameters. Never layers."""
