"""One decoder driven by a `ModelSpec`, the paged context it serves from, and the loader of checkpoints."""
