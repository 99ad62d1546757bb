"""HTTP over the engine: the OpenAI API, metrics, limits and the life of the serving process."""
