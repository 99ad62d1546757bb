"""How training computes the decoder: the same layers, with ops and an attention context made for gradients in bulk.

Decides which pieces are fused or have their gradients written out, and when the plain ones serve (an activation, a bias
or an attention that the recipes' models do not have). Knows nothing of weights or optimisers. Invariant: a decoder gives
the numbers here that it gives over a `CausalContext` on the kernels' own paths, up to rounding.
"""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from ridgepoint.catalog.spec import Activation, SwiGlu
from ridgepoint.kernels import dispatch
from ridgepoint.kernels.glu import cpu as plain_glu
from ridgepoint.kernels.moe_experts import cpu as plain_experts
from ridgepoint.kernels.norm import cpu as plain_norm
from ridgepoint.kernels.rope import cpu as plain_rope
from ridgepoint.kernels.rope import reference as rope_definition
from ridgepoint.models.decoder import Decoder
from ridgepoint.nn.context import CausalContext, GqaInputs
from ridgepoint.train.pointwise import Pointwise
from ridgepoint.train.products import CausalAttention, RoutedExperts, VocabularyLoss


class TrainingContext(CausalContext):
    """Causal attention that never computes a product above the diagonal."""

    def __init__(self, batch: int, length: int, pieces: Pointwise) -> None:
        super().__init__(batch, length)
        self._pieces = pieces

    def gqa(self, x: GqaInputs) -> Tensor:
        if x.norms is None or x.tables is None or x.interleaved or x.window is not None or x.sinks_H is not None:
            return super().gqa(x)
        q, k, v = (t.unflatten(0, (self.batch, self.length)) for t in (x.q_THP, x.k_TGP, x.v_TGV))
        tables = (table_TF[: self.length] for table_TF in x.tables)  # every sequence begins at position 0
        folded = self._pieces.queries_keys_values(q, k, v, *x.norms, x.eps, *tables)
        o: Tensor = CausalAttention.apply(*folded, x.mixer.scale, self._pieces)
        return (
            o.view(self.batch, -1, self.length, q.shape[2] // k.shape[2], q.shape[3])
            .transpose(1, 2)
            .reshape_as(x.q_THP)
        )


class TrainingOps:
    """Runs decoders. Holds no weights: workers share one."""

    def __init__(self, *, compiled: bool) -> None:
        self.pieces = Pointwise(compiled=compiled)
        self._substitutes = {
            "norm": SimpleNamespace(
                rms_norm=self.pieces.rms_norm,
                add_rms_norm=self.pieces.add_rms_norm,
                layer_norm=plain_norm.layer_norm,
                add_layer_norm=plain_norm.add_layer_norm,
            ),
            "glu": SimpleNamespace(glu=self._glu),
            # the native angles are as good, but a run's bits must not depend on whether the native library is there
            "rope": SimpleNamespace(
                rope_tables=rope_definition.rope_tables, rope=plain_rope.rope, norm_rope=plain_rope.norm_rope
            ),
            "moe_experts": SimpleNamespace(moe_experts=self._moe_experts),
        }

    def hidden(self, decoder: Decoder, ids_BS: Tensor) -> Tensor:
        """Hidden states after the final norm, x_TD."""
        with dispatch.substituted(self._substitutes):
            batch, length = ids_BS.shape
            return decoder.hidden(ids_BS.reshape(-1), TrainingContext(batch, length, self.pieces))

    def loss_sum(self, decoder: Decoder, ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
        """Summed negative log likelihood in nats."""
        head = decoder.embed if decoder.head is None else decoder.head
        loss: Tensor = VocabularyLoss.apply(
            self.hidden(decoder, ids_BS), head.weight, targets_BS.reshape(-1), self.pieces
        )
        return loss

    def _glu(self, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        if not isinstance(activation, SwiGlu):
            return plain_glu.glu(gate_up_T2F, activation)
        out: Tensor = self.pieces.swiglu(gate_up_T2F)
        return out

    def _moe_experts(
        self,
        x_TD: Tensor,
        weights_TK: Tensor,
        expert_ids_TK: Tensor,
        w_gate_up_E2FD: Tensor,
        w_down_EDF: Tensor,
        activation: Activation,
        *biases: Tensor | None,
    ) -> Tensor:
        weights = (w_gate_up_E2FD, w_down_EDF)
        if not isinstance(activation, SwiGlu) or any(bias is not None for bias in biases):
            return plain_experts.moe_experts(x_TD, weights_TK, expert_ids_TK, *weights, activation, *biases)
        out: Tensor = RoutedExperts.apply(x_TD, weights_TK, expert_ids_TK, *weights, self.pieces)
        return out
