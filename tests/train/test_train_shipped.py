"""The model that ships: small enough, whole, with its origin, and better than xz at modules it never saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import ridgepoint
from ridgepoint.models.checkpoint import load
from ridgepoint.nn.context import CausalContext
from ridgepoint.train.corpus import read_corpus
from ridgepoint.train.evaluate import bits_per_byte, xz_bits_per_byte
from ridgepoint.train.loop import recipe_hash
from ridgepoint.train.recipe import load_recipe
from ridgepoint.train.tokens import encode_documents
from ridgepoint.train.vocabulary import end_id

FOLDER = Path(ridgepoint.__file__).parent / "assets" / "stdlib-moe"
RECIPES = Path(__file__).parents[2] / "recipes"


def test_it_fits_and_names_its_recipe() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 24_000_000
    card = (FOLDER / "README.md").read_text()
    assert recipe_hash(load_recipe(RECIPES / "stdlib.toml")) in card


@pytest.mark.parametrize("name", ["stdlib-moe", "stdlib-dense"])
def test_its_log_is_beside_the_recipe(name: str) -> None:
    lines = [json.loads(line) for line in (RECIPES / f"{name}.log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_s" in line]
    assert steps[-1]["step"] == load_recipe(RECIPES / f"{name.removesuffix('-moe')}.toml").run.steps
    assert steps[-1]["bits_per_byte"] < steps[0]["bits_per_byte"]


def test_it_predicts_unseen_modules_better_than_xz_packs_them() -> None:
    """One held-out file of some size, in bfloat16 as it is served."""
    decoder = load(FOLDER, torch.bfloat16)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    files = [file for file in read_corpus(one_in=24, exclude=()).files if file.path == "textwrap.py"]
    assert files[0].part == "held_out"
    text = files[0].text[:6000]
    documents = encode_documents(tokenizer, [text], cut_every_chars=0, seed=0)

    def nll_of(ids_BS: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
        logits_TV = decoder(ids_BS.reshape(-1), CausalContext(*ids_BS.shape))
        return torch.nn.functional.cross_entropy(logits_TV, targets_BS.reshape(-1), reduction="none").view_as(ids_BS)

    bits = bits_per_byte(nll_of, documents, len(text.encode()), start_id=end_id(tokenizer), context=1024, stride=512)
    assert bits < 0.8 * xz_bits_per_byte([text], concatenated=False)


@pytest.mark.parametrize("prompt", ["def read_json(path):", "class Stack:\n    def __init__(self"])
def test_greedy_continuations_are_indented_code(prompt: str) -> None:
    decoder = load(FOLDER, torch.bfloat16)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    ids = tokenizer.encode(prompt).ids
    for _ in range(24):
        logits_TV = decoder(torch.tensor(ids), CausalContext(1, len(ids)))
        ids.append(int(logits_TV[-1].argmax()))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith(prompt)
    assert "\n    " in text.removeprefix(prompt)
