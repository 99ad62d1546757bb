"""How well does the embedded model predict Python modules it never saw? Bits per byte on the held-out modules of the
running interpreter's standard library: the shipped int8 weights, other folders named on the command line, and `xz -9e`.

Each file is scored alone, its end included, in windows of `--context` tokens that overlap by half, so every token but a
file's first ones has at least half a context before it. xz is given each file alone (what the models get) and, as the
harder yardstick, all files as one stream. A figure on another Python than the trained one may include files the model
knows; the result says so.

    python benchmarks/stdlib_bits_per_byte.py
    python benchmarks/stdlib_bits_per_byte.py --model "bfloat16=runs/stdlib-moe/bf16" --model "dense=runs/stdlib-dense/bf16"
    python benchmarks/stdlib_bits_per_byte.py --context 1024 --packed bf16 int8 int8-a8 int4-32 int4-32-a8
    python benchmarks/stdlib_bits_per_byte.py --smoke
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

import ridgepoint
from provenance import provenance, save
from ridgepoint.models.checkpoint import load
from ridgepoint.models.pack import pack_decoder
from ridgepoint.nn.context import CausalContext
from ridgepoint.train.corpus import Corpus, read_corpus
from ridgepoint.train.evaluate import bits_per_byte, xz_bits_per_byte
from ridgepoint.train.tokens import encode_documents
from ridgepoint.train.vocabulary import end_id

EMBEDDED = Path(ridgepoint.__file__).parent / "assets" / "stdlib-moe"
HOLD_OUT_ONE_IN, EXCLUDE = 24, ("encodings/", "pydoc_data/")  # recipes/stdlib.toml
SMOKE_BYTES = 20_000


def score(
    folder: Path, texts: list[str], dtype: torch.dtype, context: int, packed: str | None = None
) -> dict[str, Any]:
    """Bits per byte of the decoder in `folder`, and how long it took. `packed`: as the CPU kernels keep its matrices."""
    decoder = load(folder, dtype).requires_grad_(False)
    if packed is not None:
        pack_decoder(decoder, packed)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    documents = encode_documents(tokenizer, texts, cut_every_chars=0, seed=0)

    def nll_of(ids_BS: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
        logits_TV = decoder(ids_BS.reshape(-1), CausalContext(*ids_BS.shape))
        return torch.nn.functional.cross_entropy(logits_TV, targets_BS.reshape(-1), reduction="none").view_as(ids_BS)

    context = min(context, decoder.spec.max_context)
    num_bytes = sum(len(text.encode()) for text in texts)
    began = time.perf_counter()
    bits = bits_per_byte(nll_of, documents, num_bytes, start_id=end_id(tokenizer), context=context, stride=context // 2)
    num_tokens = sum(map(len, documents))
    return {
        "bits_per_byte": bits,
        "tokens": num_tokens,
        "bytes_per_token": num_bytes / num_tokens,
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "parameters": sum(parameter.numel() for parameter in decoder.parameters()),
        "context": context,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": time.perf_counter() - began,
    }


def choose(corpus: Corpus, smoke: bool) -> list[str]:
    texts = [text for text in corpus.texts("held_out") if text]
    if not smoke:
        return texts
    few: list[str] = []
    for text in texts:
        if sum(map(len, few)) + len(text) <= SMOKE_BYTES:
            few.append(text)
    return few


def trained_on(folder: Path, corpus: Corpus) -> bool:
    """Whether the folder's card names this very corpus."""
    card = folder / "README.md"
    return card.is_file() and corpus.sha256 in card.read_text()


def table(result: dict[str, Any]) -> str:
    """Bits per byte of each way to predict the held-out modules, and what that is of xz."""
    width = max(32, 2 + max(map(len, result["rows"])))
    lines = [f"{'held-out modules':<{width}}bits/byte  of xz per file  of xz over all"]
    for name, row in result["rows"].items():
        fracs = f"{row['frac_of_xz_each_file']:>16.2f}{row['frac_of_xz_one_stream']:>16.2f}"
        lines.append(f"{name:<{width}}{row['bits_per_byte']:>9.3f}{fracs}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="score this folder too")
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 2048], help="tokens a window, each measured")
    parser.add_argument("--packed", nargs="+", default=[], metavar="FORMAT", help="also score each model in bfloat16 with its matrices in these formats")  # fmt: skip
    parser.add_argument("--files", type=int, default=None, help="the first held-out files alone")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="a few small files")
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    corpus = read_corpus(one_in=HOLD_OUT_ONE_IN, exclude=EXCLUDE)
    texts = choose(corpus, args.smoke)[: args.files]
    folders = {"shipped int8": EMBEDDED} | {n: Path(f) for n, _, f in (model.partition("=") for model in args.model)}
    rows: dict[str, dict[str, Any]] = {}
    for name, concatenated in (("xz -9e, each file", False), ("xz -9e, one stream", True)):
        rows[name] = {"bits_per_byte": xz_bits_per_byte(texts, concatenated=concatenated)}
    for name, folder in folders.items():
        for context in args.context:
            row = f"{name}, context {context}"
            print(f"scoring {row} ({folder}) ...", file=sys.stderr, flush=True)
            rows[row] = score(folder, texts, getattr(torch, args.dtype), context)
            rows[row]["corpus_is_the_trained_one"] = trained_on(folder, corpus)
            for fmt in args.packed:
                print(f"scoring {row}, packed as {fmt} ...", file=sys.stderr, flush=True)
                rows[f"{row}, packed {fmt}"] = score(folder, texts, torch.bfloat16, context, fmt)
    each, stream = (rows[name]["bits_per_byte"] for name in ("xz -9e, each file", "xz -9e, one stream"))
    for row in rows.values():
        row["frac_of_xz_each_file"], row["frac_of_xz_one_stream"] = (
            row["bits_per_byte"] / each,
            row["bits_per_byte"] / stream,
        )
    result = {
        "schema": "ridgepoint.benchmark.stdlib_bits_per_byte/1",
        **provenance(__doc__),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "corpus_sha256": corpus.sha256,
        "held_out_modules": corpus.held_out_modules,
        "held_out_files": len(texts),
        "held_out_bytes": sum(len(text.encode()) for text in texts),
        "rows": rows,
    }
    save(args.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
