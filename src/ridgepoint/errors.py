"""The one error tree. Every error says what was asked, what it got, what is allowed, and what to try.

The command line prints `str(error)` on one line of stderr and exits non-zero; the server turns `RequestError`
into a 4xx. Code below those two edges raises and never prints.
"""

from __future__ import annotations


class RidgepointError(Exception):
    """Base of every error a user can cause or meet. `hint` is shown after the message."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class ConfigError(RidgepointError):
    """An option, key or combination of options is not allowed."""


class CatalogError(RidgepointError):
    """A fact is missing from the catalogue, malformed, or fails its physics gate."""


class CheckpointError(RidgepointError):
    """A checkpoint cannot be loaded as it is: an unknown architecture fact, or a missing or damaged tensor."""


class PlanError(RidgepointError):
    """A plan cannot be made; the message names the constraint that fails."""


class RequestError(RidgepointError):
    """A serving request is refused. `status` is the HTTP status, `param` the offending field, `code` OpenAI's code."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code


class EngineError(RidgepointError):
    """The engine process failed or cannot take work."""


class StartError(EngineError):
    """The engine refused its options or its checkpoint: the user can mend it."""


class MissingExtraError(RidgepointError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            hint=f"pip install 'ridgepoint[{extra}]'",
        )


class TrainingError(RidgepointError):
    """A training run cannot go on: it diverged, or its folder belongs to another run."""
