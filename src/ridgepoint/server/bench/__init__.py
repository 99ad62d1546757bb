"""A load generator for any OpenAI-compatible URL: when to send (`arrivals`), what happened (`drive`), what it means (`report`)."""
