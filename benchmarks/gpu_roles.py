"""Which kernels whose warps have roles the suite's sections may try: those that its checks saw end, and end right.

One that waits in vain takes its section along; the checks run them last, in a process for each operator, and what they have not
cleared by their end is left out of all that follows.
"""

from __future__ import annotations

from pathlib import Path

TUNED = {
    "moe_experts": "experts",
    "paged_attention": "paged_prompt",
    "mla_attention": "mla_decode",
}  # the tuner's names
BY_ROLES = "by roles"  # how the names of such checks end


def on_trial(out: Path, part: str | None) -> None:
    if part in TUNED:
        _verdict(out, part).write_text("its check by roles did not end")


def cleared(out: Path, part: str | None) -> None:
    if part in TUNED:
        _verdict(out, part).unlink()


def found_wrong(out: Path, part: str | None, why: str) -> None:
    if part in TUNED:
        _verdict(out, part).write_text(why)


def to_try(out: Path) -> str:
    """For RIDGEPOINT_TRY_ROLES."""
    return ",".join(op for part, op in TUNED.items() if not _verdict(out, part).exists())


def _verdict(out: Path, part: str) -> Path:
    return out / f"no-roles-{part}.txt"
