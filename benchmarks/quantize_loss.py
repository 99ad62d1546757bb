"""What does each format of `ridgepoint quantize` cost the embedded model, in bits per byte of Python it never saw?

The reference is the shipped model (int8 rows with a scale each) multiplied out: the weights it was rounded from are not
part of the package. So `int8` costs nothing here by construction. Every variant is scored in float32 on the same windows,
drawn evenly from the held-out modules; the loss of a variant is the mean over windows of the difference to the reference,
with its standard error. Calibration text is of other modules than those scored.

    python benchmarks/quantize_loss.py
    python benchmarks/quantize_loss.py --smoke
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from provenance import provenance, save
from ridgepoint.cli.quantize import calibration_ids
from ridgepoint.models.checkpoint import load
from ridgepoint.nn.context import CausalContext
from ridgepoint.quantize.calibrate import ActivationAware, sequences
from ridgepoint.quantize.convert import convert
from ridgepoint.quantize.formats import FORMATS
from ridgepoint.train.corpus import Corpus, read_corpus
from ridgepoint.train.evaluate import windows
from ridgepoint.train.tokens import encode_documents
from ridgepoint.train.vocabulary import end_id
from stdlib_bits_per_byte import EMBEDDED, EXCLUDE, HOLD_OUT_ONE_IN, trained_on

CONTEXT = 1024
Window = tuple[torch.Tensor, torch.Tensor, int]  # ids, targets, first target scored


def choose_windows(tokenizer: Tokenizer, corpus: Corpus, count: int) -> list[Window]:
    """`count` windows spread evenly over all full ones of the held-out modules, each scoring its second half."""
    documents = encode_documents(tokenizer, corpus.texts("held_out"), cut_every_chars=0, seed=0)
    full = [
        (torch.from_numpy(ids).long(), torch.from_numpy(targets).long(), CONTEXT // 2)
        for document in documents
        for ids, targets, _ in windows(document, end_id(tokenizer), CONTEXT, CONTEXT // 2)
        if len(ids) == CONTEXT
    ]
    return [full[i * len(full) // count] for i in range(min(count, len(full)))]


@torch.no_grad()
def bits_of(folder: Path, chosen: list[Window]) -> torch.Tensor:
    """Bits of the scored tokens of each window."""
    decoder = load(folder, torch.float32)
    bits = []
    for ids, targets, first in chosen:
        logits_TV = decoder(ids, CausalContext(1, len(ids)))[first:]
        bits.append(
            torch.nn.functional.cross_entropy(logits_TV, targets[first:], reduction="sum").double() / math.log(2)
        )
    return torch.stack(bits)


def bytes_of(tokenizer: Tokenizer, chosen: list[Window]) -> torch.Tensor:
    """Bytes of the scored tokens of each window: a byte-level token has a character a byte, the end of a file has none."""
    end = end_id(tokenizer)
    lengths = [
        [0 if i == end else len(tokenizer.id_to_token(i)) for i in targets[first:].tolist()]
        for _, targets, first in chosen
    ]
    return torch.tensor([sum(one) for one in lengths], dtype=torch.float64)


def loss(bits: torch.Tensor, reference: torch.Tensor, num_bytes: torch.Tensor) -> dict[str, float]:
    """Bits per byte, what they are above the reference's, and the standard error of that difference over windows."""
    difference = bits.sum() - reference.sum()
    per_window = (bits - reference) - difference / num_bytes.sum() * num_bytes  # residuals of a ratio estimate
    error = per_window.std() * math.sqrt(len(bits)) / num_bytes.sum() if len(bits) > 1 else math.nan
    return {
        "bits_per_byte": float(bits.sum() / num_bytes.sum()),
        "loss_bits_per_byte": float(difference / num_bytes.sum()),
        "standard_error": float(error),
    }


def table(result: dict[str, Any]) -> str:
    """Bits per byte lost by format and method, and the bits a quantised weight takes."""
    reference = result["reference"]
    lines = [
        f"the shipped model: {reference['bits_per_byte']:.4f} bits/byte on {result['windows']} windows of held-out modules"
    ]
    lines.append(f"{'format':<12}{'method':<18}{'bits/weight':>12}{'bits/byte':>11}{'loss':>10}{'std. error':>12}")
    for row in result["rows"]:
        lines.append(
            f"{row['format']:<12}{row['method']:<18}{row['bits_per_quantised_weight']:>12.2f}{row['bits_per_byte']:>11.4f}"
            f"{row['loss_bits_per_byte']:>+10.4f}{row['standard_error']:>12.4f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--smoke", action="store_true", help="one format, two windows, little calibration")
    parser.add_argument("--json", type=Path, default=None, help="also write the result here")
    args = parser.parse_args()
    if args.smoke:
        args.formats, args.windows, args.calibration_tokens = ["int4-g32"], 2, 256
    corpus = read_corpus(one_in=HOLD_OUT_ONE_IN, exclude=EXCLUDE)
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    chosen = choose_windows(tokenizer, corpus, args.windows)
    num_bytes, reference = bytes_of(tokenizer, chosen), bits_of(EMBEDDED, chosen)
    ids = calibration_ids(EMBEDDED, None, args.calibration_tokens)
    rows = []
    for name in args.formats:
        for method in ("rtn", "activation-aware"):
            print(f"{name} by {method} ...", file=sys.stderr, flush=True)
            began = time.perf_counter()
            more: dict[str, Any] = {}
            if method == "activation-aware":
                more["make_method"] = lambda source, config: ActivationAware(source, config, sequences(ids, 512))
            with tempfile.TemporaryDirectory(prefix="ridgepoint-quantize-") as scratch:
                report = convert(EMBEDDED, Path(scratch) / name, FORMATS[name], **more)
                took = time.perf_counter() - began
                bits = bits_of(Path(scratch) / name, chosen)
            kept = {key: report[key] for key in ("format", "method", "bits_per_quantised_weight", "target_bytes",
                                                 "relative_rms_error", "relative_output_loss", "experts_topped_up")
                    if key in report}  # fmt: skip
            rows.append({**kept, **loss(bits, reference, num_bytes), "convert_s": took})
    result = {
        "schema": "ridgepoint.benchmark.quantize_loss/1",
        **provenance(__doc__),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus_sha256": corpus.sha256,
        "corpus_is_the_trained_one": trained_on(EMBEDDED, corpus),
        "context": CONTEXT,
        "windows": len(chosen),
        "scored_bytes": int(num_bytes.sum()),
        "calibration_tokens": len(ids),
        "reference": {"weights": "the shipped int8 model, multiplied out", **loss(reference, reference, num_bytes)},
        "rows": rows,
    }
    save(args.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
