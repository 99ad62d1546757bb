"""What the engine alone can refuse of a submission before it becomes a request."""

from __future__ import annotations

from ridgepoint.engine.protocol import Submit
from ridgepoint.errors import RequestError


def check_ids(submit: Submit, vocab_size: int) -> None:
    """Refuse token ids that the model does not have."""
    params = submit.params
    for param, ids in (
        ("prompt", submit.prompt_ids),
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
    ):
        for token in (min(ids), max(ids)) if ids else ():
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"{param} has the token id {token}; the vocabulary has ids 0 to {vocab_size - 1}",
                    param=param, code="invalid_token_id",
                )  # fmt: skip


def check_ending(submit: Submit) -> None:
    """The form of an output says where it ends, so nothing else may say that it must go on."""
    params = submit.params
    for param, is_set in (("min_tokens", params.min_tokens > 0), ("ignore_eos", params.ignore_eos)):
        if is_set:
            raise RequestError(
                f"{param} cannot be combined with structured output, whose form says where it ends", param=param,
                code="invalid_value",
            )  # fmt: skip
