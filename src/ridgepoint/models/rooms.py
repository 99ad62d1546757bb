"""Where a loader puts the weights it packs: host memory as the native kernels read it, or an accelerator's as Triton's do.

Decides which matrices are packed at all, and which stored codes the kernels of a device keep to the bit. What they cannot
keep is multiplied out, and `lacks` says why. Knows nothing of the order in which a checkpoint is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from ridgepoint.catalog.families import Piece
from ridgepoint.errors import ConfigError
from ridgepoint.kernels import device_weight, dispatch, native, packed
from ridgepoint.kernels.device_weight import BLOCK, FP8_BLOCK_ROWS, MXFP4_MAX_EXPONENT, DeviceWeight
from ridgepoint.kernels.packed import GROUPS, ExponentsError, Packed
from ridgepoint.models.pack import Role
from ridgepoint.models.source import Source
from ridgepoint.models.stored import Form, output_rows

PLAIN = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A parameter's matrices as a checkpoint holds them: `pieces` matrix by matrix in the order of rows, each with its form."""

    source: Source
    pieces: Sequence[Piece]
    forms: Sequence[Form]
    parts: int  # gate and up, or one
    outputs: int


class Rooms(Protocol):
    """One kind of kernels as a loader sees them."""

    @property
    def device(self) -> torch.device: ...

    @property
    def pairs_experts(self) -> bool:
        """Whether both matrices of an expert must be of one kind."""
        ...

    @property
    def packs_latents(self) -> bool:
        """Whether the matrices into and out of latent attention's space are packed too."""
        ...

    @property
    def widens_vectors(self) -> bool:
        """Whether biases and sinks are kept in float32."""
        ...

    def plain(self, dtype: torch.dtype) -> str:
        """The format that keeps weights of this type to the bit, where nothing else was asked for."""
        ...

    def check(self, dtype: torch.dtype, fmt: str | None) -> None:
        """Refuse a format that these kernels have not, or not beside activations of `dtype`."""
        ...

    def packs(self, fmt: str, role: Role) -> bool:
        """Whether a matrix in this format is packed; if not, it stays a tensor of the type the format names."""
        ...

    def lacks(self, fmt: str, dtype: torch.dtype, stored: StoredMatrix) -> str | None:
        """What stands against keeping codes stored in `fmt`; None if nothing does."""
        ...

    def unfilled(self, fmt: str, count: int, outputs: int, inputs: int, *, glu: bool, stacked: bool) -> Packed | DeviceWeight: ...  # fmt: skip

    def fill_matrix(self, room: Packed | DeviceWeight, index: int, w_OI: torch.Tensor) -> Packed | DeviceWeight:
        """Returns the room it went to: another one, with all that was there, where this one's format could not hold it."""
        ...

    def fill_codes(
        self, room: Packed | DeviceWeight, index: int, codes_OI: torch.Tensor, scales_ON: torch.Tensor
    ) -> None: ...


class HostRooms:
    """The native kernels pack every matrix, whatever its format."""

    device = torch.device("cpu")
    pairs_experts, packs_latents, widens_vectors = False, True, True

    def plain(self, dtype: torch.dtype) -> str:
        return packed.whole_format(dtype) if native.available() else PLAIN[dtype]

    def check(self, dtype: torch.dtype, fmt: str | None) -> None:
        if fmt is not None and fmt not in GROUPS:
            raise ConfigError(f"weight format {fmt!r} is unknown; allowed: {', '.join(GROUPS)}")
        if dtype == torch.float32 and fmt not in (None, "f32"):
            raise ConfigError(f"a float32 decoder packs as f32, not {fmt!r}", hint="load it in bfloat16")

    def packs(self, fmt: str, role: Role) -> bool:
        return True

    def lacks(self, fmt: str, dtype: torch.dtype, stored: StoredMatrix) -> str | None:
        return f"{fmt}, in a float32 decoder" if dtype == torch.float32 else None

    def unfilled(self, fmt: str, count: int, outputs: int, inputs: int, *, glu: bool, stacked: bool) -> Packed:
        return packed.unfilled(fmt, count, outputs, inputs, glu=glu, stacked=stacked)

    def fill_matrix(self, room: Packed | DeviceWeight, index: int, w_OI: torch.Tensor) -> Packed:
        assert isinstance(room, Packed)
        try:
            packed.pack_matrix(room, index, w_OI)
        except ExponentsError:
            room = packed.plain_copy(room)
            packed.pack_matrix(room, index, w_OI)
        return room

    def fill_codes(
        self, room: Packed | DeviceWeight, index: int, codes_OI: torch.Tensor, scales_ON: torch.Tensor
    ) -> None:
        assert isinstance(room, Packed)
        packed.pack_codes(room, index, codes_OI, scales_ON)


@dataclass(frozen=True)
class DeviceRooms:
    """Triton's kernels pack what has fewer than 16 bits; the rest, and every router, stays a tensor for torch's BLAS."""

    device: torch.device
    pairs_experts: ClassVar[bool] = True
    packs_latents: ClassVar[bool] = False
    widens_vectors: ClassVar[bool] = False

    def plain(self, dtype: torch.dtype) -> str:
        return PLAIN[dtype]

    def check(self, dtype: torch.dtype, fmt: str | None) -> None:
        allowed = [PLAIN[dtype]]
        if dtype == torch.bfloat16 and dispatch.triton_installed():
            allowed += device_weight.FORMATS
        if fmt is not None and fmt not in allowed:
            triton = "" if dispatch.triton_installed() else ", without Triton,"
            raise ConfigError(
                f"weight format {fmt!r} has no kernel on {self.device.type} beside {dtype}{triton}; "
                f"allowed: {', '.join(allowed)}",
                hint="low precision there needs bfloat16 and ridgepoint[gpu]",
            )

    def packs(self, fmt: str, role: Role) -> bool:
        return role != "router" and fmt in device_weight.FORMATS

    def lacks(self, fmt: str, dtype: torch.dtype, stored: StoredMatrix) -> str | None:
        if not dispatch.triton_installed():
            return f"{fmt}, which takes Triton"
        if dtype != torch.bfloat16:
            return f"{fmt}, whose kernels take bf16 activations"
        if fmt.startswith("fp8") and _straddles_blocks(stored):
            return f"fp8 whose scales differ within a block of {FP8_BLOCK_ROWS} x {BLOCK}"
        if fmt == "mxfp4" and _largest_exponent(stored) > MXFP4_MAX_EXPONENT:
            return f"mxfp4 with scales above 2^{MXFP4_MAX_EXPONENT - 127}"
        return None

    def unfilled(self, fmt: str, count: int, outputs: int, inputs: int, *, glu: bool, stacked: bool) -> DeviceWeight:
        return device_weight.unfilled_for_device(
            fmt, count, outputs, inputs, glu=glu, stacked=stacked, device=self.device
        )

    def fill_matrix(self, room: Packed | DeviceWeight, index: int, w_OI: torch.Tensor) -> DeviceWeight:
        assert isinstance(room, DeviceWeight)
        device_weight.fill_matrix(room, index, w_OI)
        return room

    def fill_codes(
        self, room: Packed | DeviceWeight, index: int, codes_OI: torch.Tensor, scales_ON: torch.Tensor
    ) -> None:
        assert isinstance(room, DeviceWeight)
        device_weight.fill_codes(room, index, codes_OI, scales_ON)


def rooms_on(device: torch.device) -> Rooms:
    return HostRooms() if device.type == "cpu" else DeviceRooms(device)


def _straddles_blocks(stored: StoredMatrix) -> bool:
    """Whether some block of the kernels, counted from the first row of a part, has rows of several blocks of the file.
    The matrices of a stack are cut alike: the first one tells."""
    ids: list[torch.Tensor] = []
    for number, (piece, form) in enumerate(zip(stored.pieces, stored.forms, strict=True)):
        if piece.index != stored.pieces[0].index:
            break
        rows_O1 = torch.arange(form.outputs)[:, None] // form.group_rows + number * (stored.outputs + 1)
        ids.append(output_rows(rows_O1, piece))
    by_part = torch.cat(ids).view(stored.parts, -1)
    blocks = by_part[:, ::FP8_BLOCK_ROWS].repeat_interleave(FP8_BLOCK_ROWS, 1)[:, : by_part.shape[1]]
    return not torch.equal(blocks, by_part)


def _largest_exponent(stored: StoredMatrix) -> int:
    """Of MXFP4's scales, which only the data tells: a seventeenth of the weights' bytes."""
    largest = 0
    for name in dict.fromkeys(form.scale for form in stored.forms):
        file = stored.source.files[name]
        largest = max(largest, int(file.tensor(name).max()))
        file.release(name)
    return largest
