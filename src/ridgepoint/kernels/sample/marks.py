"""What a seat's counts say of a token beside how often it is in the output."""

IN_PROMPT = 1 << 30
IS_STOP = 1 << 29  # it ends the request, and is banned while it may not end yet
