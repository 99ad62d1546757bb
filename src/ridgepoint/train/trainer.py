"""One training step and everything it reads and writes. Decides how a batch becomes new weights; knows nothing of
files, progress bars or the clock.

Microbatches are worked on by threads (each product runs on one core, so nobody waits at a barrier inside a layer) and
their gradients are summed in microbatch order. Invariant: weights after a step do not depend on the number of workers.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ridgepoint.errors import TrainingError
from ridgepoint.models.decoder import Decoder
from ridgepoint.train.evaluate import NllOf
from ridgepoint.train.family import spec_of
from ridgepoint.train.ops import TrainingOps
from ridgepoint.train.optimizer import balance, clip_norm, learning_rate, make_adamw
from ridgepoint.train.pointwise import allow_many_shapes
from ridgepoint.train.recipe import Recipe
from ridgepoint.train.tokens import Mixture
from ridgepoint.train.weights import compute_copy, initial_masters, refresh, worker_view


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did: nats per token of its batch, and how evenly the experts were loaded."""

    step: int
    nats_per_token: float
    grad_norm: float
    lr: float
    max_load_ratio: float  # worst layer's max / mean tokens per expert
    dead_experts: int  # experts without a token in this batch, all layers


class Trainer:
    def __init__(
        self, recipe: Recipe, mixture: Mixture, vocab_size: int, *, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.recipe, self.mixture = recipe, mixture
        self.masters = initial_masters(spec_of(recipe.model, vocab_size), recipe.run.seed)
        self.optimizer = make_adamw(list(self.masters.parameters()), recipe.optimizer)
        self.compute = compute_copy(self.masters, dtype).eval()
        self.refresh()
        self.step = 0
        self._ops = TrainingOps(compiled=recipe.run.compile)
        self._worker = threading.local()
        self._pool = ThreadPoolExecutor(recipe.run.workers, initializer=self._prepare_worker)
        self._first = threading.Lock()
        self._seen: set[tuple[int, ...]] = set()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def refresh(self) -> None:
        """Copy masters to the tensors the forward pass reads."""
        refresh(self.compute, self.masters)

    def _prepare_worker(self) -> None:
        torch.set_num_threads(1)
        allow_many_shapes()
        self._worker.decoder = worker_view(self.compute)

    def _gradients(self, rows_BS1: Tensor) -> tuple[float, dict[int, Tensor], tuple[Tensor, ...]]:
        decoder: Decoder = self._worker.decoder
        loss = self._ops.loss_sum(decoder, rows_BS1[:, :-1], rows_BS1[:, 1:])
        loads = {layer: moe.router.take_load() for layer, moe in decoder.moe_layers()}
        return loss.item(), loads, torch.autograd.grad(loss, list(decoder.parameters()))

    def _microbatch(self, rows_BS1: Tensor) -> tuple[float, dict[int, Tensor], tuple[Tensor, ...]]:
        """The first batch of a shape runs alone, because it compiles."""
        if tuple(rows_BS1.shape) in self._seen:
            return self._gradients(rows_BS1)
        with self._first:
            result = self._gradients(rows_BS1)
            self._seen.add(tuple(rows_BS1.shape))
            return result

    def train_step(self) -> StepRecord:
        run, table = self.recipe.run, self.recipe.optimizer
        phase = self.recipe.phase_at(self.step)
        rows = self.mixture.batch(run.tokens_per_step // phase.seq_len, phase.seq_len, phase.tests_frac)
        parts = torch.from_numpy(rows).split(run.tokens_per_microbatch // phase.seq_len)
        nats = 0.0
        loads: dict[int, Tensor] = {}
        grads: list[Tensor] = []
        for loss, part_loads, part_grads in self._pool.map(self._microbatch, parts):  # in order, whoever was faster
            nats += loss
            loads = {layer: load + loads[layer] if layer in loads else load for layer, load in part_loads.items()}
            if grads:
                for total, grad in zip(grads, part_grads, strict=True):
                    total += grad
            else:
                grads = [grad.float() for grad in part_grads]
        nats /= run.tokens_per_step
        for grad in grads:
            grad /= run.tokens_per_step
        norm = clip_norm(grads, table.clip_norm)
        if not (norm < float("inf") and nats < float("inf")):
            raise TrainingError(
                f"step {self.step} diverged: loss {nats}, gradient norm {norm}", hint="lower optimizer.lr"
            )
        lr = learning_rate(table, self.step, run.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for master, grad in zip(self.masters.parameters(), grads, strict=True):
            master.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.refresh()
        ratios = []
        for layer, moe in self.masters.moe_layers():
            assert moe.router.correction_E is not None
            ratios.append(balance(moe.router.correction_E, loads[layer], table.balance_rate))
        dead = sum(int((load == 0).sum()) for load in loads.values())
        record = StepRecord(
            step=self.step,
            nats_per_token=nats,
            grad_norm=norm,
            lr=lr,
            max_load_ratio=max(ratios, default=1.0),
            dead_experts=dead,
        )
        self.step += 1
        return record

    def nll_of(self) -> NllOf:
        """Per-token losses of the current weights, logits in float32 from states of the compute type."""
        # plain operations: a document's windows have many lengths, and compiling each would cost more than it saves
        ops = TrainingOps(compiled=False)

        def nll(ids_BS: Tensor, targets_BS: Tensor) -> Tensor:
            logits_TV = self.compute.logits(ops.hidden(self.compute, ids_BS))
            return torch.nn.functional.cross_entropy(logits_TV, targets_BS.reshape(-1), reduction="none").view_as(
                ids_BS
            )

        return nll
