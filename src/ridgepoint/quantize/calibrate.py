"""What flows into each matrix: calibration text through the decoder's own layers, one layer in memory at a time.

A layer's matrices are made into codes in the order a step reaches them, and each takes effect at once, so every matrix
is fitted to inputs that have already lost what those before it lose.

Experts see only the tokens routed to them. One that fewer than `MIN_TOKENS_PER_INPUT` times its width reach (or fewer than
there are) is given in addition the tokens whose router logits for it are highest: those it would have had next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ridgepoint.catalog.families import CheckpointConfig
from ridgepoint.catalog.spec import MoeSpec
from ridgepoint.kernels.glu import glu
from ridgepoint.models.checkpoint import fill, region_of, with_memory
from ridgepoint.models.codes import Codes
from ridgepoint.models.decoder import Block, Decoder
from ridgepoint.models.source import Source
from ridgepoint.models.stored import output_rows
from ridgepoint.nn.context import CausalContext
from ridgepoint.nn.ffn import Experts, MoeFfn
from ridgepoint.quantize.compensate import compensate, output_loss
from ridgepoint.quantize.matrices import Matrix

MIN_TOKENS_PER_INPUT = 2
_BATCH_TOKENS = 4096  # per pass, which bounds the memory of a pass


class _Captured(Exception):  # noqa: N818  no error: a way out
    """The pass has gone as far as it had to."""


class ActivationAware:
    """`ids_BS` are the calibration tokens, B sequences of S. Not thread-safe; one use."""

    name = "activation-aware"

    @torch.no_grad()
    def __init__(self, source: Source, config: CheckpointConfig, ids_BS: torch.Tensor) -> None:
        self._source, self._config = source, config
        self._decoder = Decoder(self._config.spec, torch.float32, device="meta").eval().requires_grad_(False)
        self._decoder.reset_rotary("cpu")
        self._load(self._decoder.embed, "embed.")
        rows = max(1, _BATCH_TOKENS // ids_BS.shape[1])
        # Per batch of sequences: its shape, the residual stream and the branch not yet added to it.
        self._states: list[tuple[tuple[int, int], torch.Tensor, torch.Tensor | None]] = [
            (ids.shape, self._decoder.embed(ids.reshape(-1)), None) for ids in ids_BS.split(rows)
        ]
        self._layer: int | None = None
        self._captured: tuple[str, Any] | None = None
        self._moment: tuple[tuple[str, int | None], torch.Tensor] | None = None
        self.num_tokens, self.topped_up = ids_BS.numel(), 0
        self.losses: dict[str, list[float]] = {}

    @torch.no_grad()
    def codes(self, matrix: Matrix, index: int | None, weight_OI: torch.Tensor) -> Codes:
        self._advance(matrix.layer)
        moment_II = self._moment_of(matrix, index)
        codes = compensate(weight_OI, moment_II, matrix.fmt)
        words = matrix.pieces[0].param.removesuffix(".weight").split(".")
        self.losses.setdefault(".".join(words[-2:]), []).append(output_loss(weight_OI, codes, moment_II))
        if matrix.layer is not None:
            dense_OI = codes.dense()
            for piece in matrix.pieces:
                region = region_of(self._decoder.get_parameter(piece.param), piece)
                (region if index is None else region[index]).copy_(output_rows(dense_OI, piece))
        return codes

    def report(self) -> dict[str, Any]:
        losses = {role: sum(values) / len(values) for role, values in self.losses.items()}
        return {
            "calibration_tokens": self.num_tokens,
            "experts_topped_up": self.topped_up,
            "relative_output_loss": losses,
        }

    # ------------------------------------------------------------ layers

    def _advance(self, layer: int | None) -> None:
        """Bring `layer` into memory (None: what follows the last), its inputs those the layers before it now give."""
        wanted = len(self._decoder.layers) if layer is None else layer
        while self._layer is None or self._layer < wanted:
            if self._layer is not None:
                block = self._block()
                self._states = [
                    (shape, *block(x_TD, delta_TD, self._tables(ctx), ctx))
                    for shape, x_TD, delta_TD, ctx in self._batches()
                ]
                block.to("meta")
            self._layer = 0 if self._layer is None else self._layer + 1
            self._captured = self._moment = None
            if self._layer < len(self._decoder.layers):
                self._load(self._block(), f"layers.{self._layer}.")
            else:
                self._load(self._decoder.norm, "norm.")

    def _block(self) -> Block:
        assert self._layer is not None
        block = self._decoder.layers[self._layer]
        assert isinstance(block, Block)
        return block

    def _load(self, module: nn.Module, prefix: str) -> None:
        """Give one module memory and its weights in float32."""
        with_memory(module, "cpu")
        targets = {name: t for name, t in self._decoder.state_dict(keep_vars=True).items() if name.startswith(prefix)}
        for piece in self._config.pieces:
            if piece.param in targets:
                fill(self._source, self._config, piece, targets[piece.param])

    def _batches(self) -> list[tuple[tuple[int, int], torch.Tensor, torch.Tensor | None, CausalContext]]:
        return [(shape, x_TD, delta_TD, CausalContext(*shape)) for shape, x_TD, delta_TD in self._states]

    def _tables(self, ctx: CausalContext) -> list[Any]:
        return [rotary(ctx.positions_T) for rotary in self._decoder.rotaries]

    # ------------------------------------------------------------ inputs

    def _moment_of(self, matrix: Matrix, index: int | None) -> torch.Tensor:
        piece = matrix.pieces[0]
        path, _, leaf = piece.param.rpartition(".")
        expert = piece.index if piece.index is not None else index
        key = (piece.param, expert)
        if self._moment is None or self._moment[0] != key:
            if leaf in ("w_gate_up_E2FD", "w_down_EDF"):
                assert expert is not None
                x_TI = self._expert_inputs(path, expert, down=leaf == "w_down_EDF")
            elif leaf in ("w_uk_HNC", "w_uv_HVC"):
                x_TI = self._capture(f"{path}.kv_a_norm", after=True)
            elif matrix.layer is None:
                x_TI = torch.cat([self._normed(x_TD, delta_TD) for _, x_TD, delta_TD in self._states])
            else:
                x_TI = self._capture(path)[0]
            self._moment = (key, x_TI.T @ x_TI / max(1, len(x_TI)))
        return self._moment[1]

    def _normed(self, x_TD: torch.Tensor, delta_TD: torch.Tensor | None) -> torch.Tensor:
        assert delta_TD is not None
        return self._decoder.norm.add(x_TD, delta_TD, self._config.spec.residual_scale)[1]

    def _capture(self, name: str, *, after: bool = False) -> Any:
        """The positional inputs of a module of this layer (or its output), over all tokens."""
        if self._captured is not None and self._captured[0] == name:
            return self._captured[1]
        seen: list[Any] = []

        def before_hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs)
            raise _Captured

        def after_hook(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            seen.append((output,))
            raise _Captured

        module = self._decoder.get_submodule(name)
        hook = module.register_forward_hook(after_hook) if after else module.register_forward_pre_hook(before_hook)
        try:
            for _, x_TD, delta_TD, ctx in self._batches():
                try:
                    self._block()(x_TD, delta_TD, self._tables(ctx), ctx)
                except _Captured:
                    continue
        finally:
            hook.remove()
        joined = tuple(torch.cat(parts) for parts in zip(*seen, strict=True))
        value = joined[0] if after else joined
        self._captured = (name, value)
        return value

    def _expert_inputs(self, path: str, expert: int, *, down: bool) -> torch.Tensor:
        """Tokens of one expert; for its second matrix, what its first ones (as they are now) make of them."""
        x_TD, _, ids_TK = self._capture(path)
        ffn = self._decoder.get_submodule(path.removesuffix(".experts"))
        experts = self._decoder.get_submodule(path)
        assert isinstance(ffn, MoeFfn) and isinstance(experts, Experts)
        mine_T = (ids_TK == expert).any(-1)
        fewest = min(
            len(x_TD), MIN_TOKENS_PER_INPUT * (experts.w_down_EDF if down else experts.w_gate_up_E2FD).shape[2]
        )
        if int(mine_T.sum()) < fewest:
            logits_T = ffn.router.logits(x_TD)[:, expert].masked_fill(mine_T, torch.inf)
            mine_T = torch.zeros_like(mine_T).index_fill_(0, logits_T.topk(fewest).indices, True)
            self.topped_up += 1
        x_ND = x_TD[mine_T]
        if not down:
            return x_ND
        hidden = x_ND @ experts.w_gate_up_E2FD[expert].T
        if experts.bias_gate_up_E2F is not None:
            hidden = hidden + experts.bias_gate_up_E2F[expert]
        assert self._layer is not None
        moe = self._config.spec.layers[self._layer].ffn
        assert isinstance(moe, MoeSpec)
        return glu(hidden, moe.activation)


def sequences(ids: list[int], length: int) -> torch.Tensor:
    """Ids cut into rows of `length`; a shorter rest is left out unless it is all there is."""
    rows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)] or [ids]
    return torch.tensor(rows)
