"""A run from recipe to weights: prepare the data, resume or begin, step, log, evaluate, save, stop when asked.

Decides what a run's folder holds (`tokenizer.json`, `log.jsonl`, `step-*.safetensors`) and when each is written; the
arithmetic is the trainer's. Invariant: a folder belongs to one recipe and one corpus (both hashes are kept), and stopping
anywhere loses at most the steps since the last checkpoint, never their repeatability.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer

from ridgepoint.errors import ConfigError, TrainingError
from ridgepoint.train.checkpoint import checkpoint_paths, load_checkpoint, save_checkpoint
from ridgepoint.train.corpus import Corpus, read_corpus
from ridgepoint.train.evaluate import bits_per_byte
from ridgepoint.train.flops import flops_per_token
from ridgepoint.train.progress import RunLog
from ridgepoint.train.recipe import Recipe
from ridgepoint.train.tokens import Ids, Mixture, Source, encode_documents
from ridgepoint.train.trainer import Trainer
from ridgepoint.train.vocabulary import end_id, train_tokenizer


def keep_freed_memory() -> None:
    """Have malloc keep what a step frees: faulting the same pages in again each step costs up to half its time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # not glibc: its allocator has its own ways
        return
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def recipe_hash(recipe: Recipe) -> str:
    """Of everything that decides the weights: not the number of workers, nor what is logged and when."""
    data = msgspec.to_builtins(recipe)
    for key in ("workers", "log_every_steps", "evaluate_every_steps", "evaluate_bytes", "checkpoint_every_s"):
        del data["run"][key]
    return hashlib.sha256(msgspec.json.encode(data, order="deterministic")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run reads: the corpus, its tokenizer, the two streams, and a fixed share of the held-out files."""

    corpus: Corpus
    tokenizer: Tokenizer
    mixture: Mixture
    bytes_per_token: float  # of the library, for bits per byte while training
    probe: list[Ids]
    probe_bytes: int


def prepare(recipe: Recipe, folder: Path, root: Path | None = None) -> Prepared:
    corpus = read_corpus(one_in=recipe.corpus.hold_out_one_in, exclude=recipe.corpus.exclude, root=root)
    saved = folder / "tokenizer.json"
    if saved.exists():
        tokenizer = Tokenizer.from_file(str(saved))
    else:
        tokenizer = train_tokenizer(corpus.texts("library"), recipe.tokenizer.vocab_size)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(saved))
    sources = []
    for number, part in enumerate(("library", "tests")):
        documents = encode_documents(
            tokenizer,
            corpus.texts(part),  # type: ignore[arg-type]
            cut_every_chars=recipe.tokenizer.cut_every_chars,
            seed=recipe.run.seed,
        )
        sources.append(Source(part, documents, [recipe.run.seed, 2, number]))
    probe_texts: list[str] = []
    for text in corpus.texts("held_out"):
        if sum(len(t.encode()) for t in probe_texts) + len(text.encode()) <= recipe.run.evaluate_bytes:
            probe_texts.append(text)
    return Prepared(
        corpus=corpus,
        tokenizer=tokenizer,
        mixture=Mixture(*sources),
        bytes_per_token=corpus.num_bytes("library") / sources[0].num_tokens,
        probe=encode_documents(tokenizer, probe_texts, cut_every_chars=0, seed=0),
        probe_bytes=sum(len(text.encode()) for text in probe_texts),
    )


class _StopSignal:
    """Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended: after how many of its steps, and its newest checkpoint."""

    finished: bool
    step: int
    checkpoint: Path


def run(recipe: Recipe, folder: Path, *, stop_after: int | None = None, root: Path | None = None) -> RunResult:
    """Train in `folder`, going on from its newest checkpoint if it has one. `stop_after` ends early (as Ctrl-C does)."""
    if recipe.run.compile:
        check_compiler()
    torch.set_num_threads(1)
    keep_freed_memory()
    prepared = prepare(recipe, folder, root)
    identity = {"recipe_sha256": recipe_hash(recipe), "corpus_sha256": prepared.corpus.sha256}
    trainer = Trainer(recipe, prepared.mixture, prepared.tokenizer.get_vocab_size())
    facts = {
        **identity,
        "python": prepared.corpus.python_version,
        "held_out": list(prepared.corpus.held_out_modules),
    }
    done_s = _resume(trainer, folder, identity)
    log_path = folder / "log.jsonl"
    try:
        with RunLog(log_path, total_steps=recipe.run.steps, done_steps=trainer.step) as log, _StopSignal() as stop:
            log.event("resume" if trainer.step else "start", step=trainer.step, **facts)
            checkpoint = _loop(trainer, prepared, folder, facts, log, stop, done_s, stop_after)
            return RunResult(finished=trainer.step >= recipe.run.steps, step=trainer.step, checkpoint=checkpoint)
    finally:
        trainer.close()


def _resume(trainer: Trainer, folder: Path, identity: dict[str, str]) -> float:
    """Restore the newest checkpoint, if there is one; returns the seconds the run has taken so far."""
    paths = checkpoint_paths(folder)
    if not paths:
        return 0.0
    state = load_checkpoint(paths[-1], masters=trainer.masters, optimizer=trainer.optimizer)
    for key, value in identity.items():
        if state[key] != value:
            raise TrainingError(
                f"{folder} belongs to another run: {key} {state[key][:12]}..., this run's is {value[:12]}...",
                hint="choose another --out, or the recipe and Python that the run began with",
            )
    trainer.refresh()
    trainer.mixture.restore(state["data"])
    trainer.step = state["step"]
    return float(state["elapsed_s"])


def _loop(
    trainer: Trainer,
    prepared: Prepared,
    folder: Path,
    facts: dict[str, Any],
    log: RunLog,
    stop: _StopSignal,
    done_s: float,
    stop_after: int | None,
) -> Path:
    recipe, settings = trainer.recipe, trainer.recipe.run
    began = saved_at = time.monotonic()
    if trainer.step >= settings.steps:
        return checkpoint_paths(folder)[-1]
    since_s, since_step, nats = began, trainer.step, 0.0
    while True:
        record = trainer.train_step()
        nats += record.nats_per_token
        now = time.monotonic()
        last = trainer.step >= settings.steps
        if trainer.step % settings.log_every_steps == 0 or last:
            count = trainer.step - since_step
            tokens_per_s = count * settings.tokens_per_step / (now - since_s)
            seq_len = recipe.phase_at(record.step).seq_len
            log.step(
                {
                    **asdict(record),
                    "step": trainer.step,
                    "nats_per_token": round(nats / count, 4),
                    "bits_per_byte": round(nats / count / math.log(2) / prepared.bytes_per_token, 4),
                    "tokens": trainer.step * settings.tokens_per_step,
                    "tokens_per_s": round(tokens_per_s, 1),
                    "model_flops_per_s": round(3 * flops_per_token(recipe, seq_len) * tokens_per_s),
                    "elapsed_s": round(done_s + now - began, 1),
                }
            )
            since_s, since_step, nats = now, trainer.step, 0.0
        if prepared.probe and (trainer.step % settings.evaluate_every_steps == 0 or last):
            log.event("held_out", step=trainer.step, bits_per_byte=_probe(trainer, prepared))
            since_s += time.monotonic() - now
        ending = last or stop.asked or (stop_after is not None and trainer.step >= stop_after)
        if ending or time.monotonic() - saved_at >= settings.checkpoint_every_s:
            state = {**facts, "data": trainer.mixture.state(), "elapsed_s": done_s + time.monotonic() - began}
            path = save_checkpoint(
                folder,
                step=trainer.step,
                masters=trainer.masters,
                optimizer=trainer.optimizer,
                state=state,
            )
            saved_at = time.monotonic()
            if ending:
                log.event("finished" if last else "stopped", step=trainer.step, checkpoint=path.name)
                return path


def _probe(trainer: Trainer, prepared: Prepared) -> float:
    """Held-out bits per byte on the recipe's fixed share of the held-out files, at the context trained last."""
    context = trainer.recipe.phase_at(trainer.step - 1).seq_len
    return bits_per_byte(
        trainer.nll_of(),
        prepared.probe,
        prepared.probe_bytes,
        start_id=end_id(prepared.tokenizer),
        context=context,
        stride=context // 2,
    )


def check_compiler() -> None:
    """`compile = true` needs a C++ compiler: say so before an hour is planned on it."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception as error:
        raise ConfigError(
            f"run.compile = true needs a C++ compiler ({type(error).__name__})",
            hint="install g++, or set run.compile = false",
        ) from None
