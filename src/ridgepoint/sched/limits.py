"""Which requests could never run, whatever the load: the one rule shared by the front end and the scheduler."""

from __future__ import annotations

from ridgepoint.errors import RequestError


def check_fits(num_prompt: int, max_tokens: int, *, max_context: int, kv_tokens: int) -> None:
    """Raise `RequestError` for an empty prompt, or more tokens than the context or the whole KV memory holds.

    The last output token is never fed back, so it needs a place in the context but none in the KV memory.
    """
    if num_prompt == 0:
        raise RequestError("the prompt has no tokens", param="prompt", code="empty_prompt")
    limit = min(max_context, kv_tokens + 1)
    if num_prompt >= limit:
        raise RequestError(
            f"the prompt has {num_prompt} tokens; prompt and output together may have {limit}",
            param="prompt", code="context_length_exceeded",
        )  # fmt: skip
    if num_prompt + max_tokens > limit:
        raise RequestError(
            f"{num_prompt} prompt tokens and max_tokens {max_tokens} exceed the {limit} tokens that fit",
            param="max_tokens", code="context_length_exceeded", hint=f"ask for at most {limit - num_prompt}",
        )  # fmt: skip
