"""Text to token ids and back, from a checkpoint's tokenizer.json, without torch or transformers.

Decides what each token's bytes are (the decoder in tokenizer.json, interpreted once), and which chat template applies.
BOS is what tokenizer.json's post-processor says; as in `transformers` it outranks `add_bos_token` in the config. A decoder, or a tokenizer format, that is not understood is
refused by name. Threads may share one `Tokenizer`: nothing changes after loading.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ridgepoint.engine.chat_template import ChatTemplate
from ridgepoint.engine.text import TokenBytes
from ridgepoint.errors import CheckpointError, MissingExtraError

MAX_CONFIG_BYTES = 256 << 20
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """`encode` text, look up `tokens` bytes, render `chat_template` (None where the checkpoint has none)."""

    def __init__(
        self, backend: Any, *, tokens: TokenBytes, special_tokens: dict[str, str], template: str | None
    ) -> None:
        self._backend = backend
        self.tokens = tokens
        self.special_tokens = special_tokens
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.longest_token_bytes = max((len(piece) for piece in tokens.pieces), default=1)
        self._template_source = template

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        if self._template_source is None:
            return None
        return ChatTemplate(self._template_source, special_tokens=self.special_tokens, origin="the checkpoint")

    @property
    def bos_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._id_of("eos_token")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with `add_special_tokens` what the tokenizer puts around a prompt (BOS, mostly)."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.tokens.text(token_ids, skip_special=skip_special)

    def piece(self, token_id: int) -> str | None:
        """The vocabulary's own spelling of a token (`Ġthe`), None past its end."""
        piece: str | None = self._backend.id_to_token(token_id)
        return piece

    def special_ids_of(self, texts: Iterable[str]) -> dict[str, int]:
        """Those of the texts that are special tokens, and their ids."""
        of_bytes = {self.tokens.of(token_id): token_id for token_id in self.tokens.special_ids}
        return {text: of_bytes[text.encode()] for text in texts if text.encode() in of_bytes}

    def with_chat_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return Tokenizer(self._backend, tokens=self.tokens, special_tokens=self.special_tokens, template=source)

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        token_id: int | None = None if token is None else self._backend.token_to_id(token)
        return token_id


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json, tokenizer_config.json and chat templates of a checkpoint folder."""
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise MissingExtraError("tokenizers", "serve", "reading a tokenizer") from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            hint="convert it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    description = _read_json(path)
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    config_path = folder / "tokenizer_config.json"
    config = _read_json(config_path) if config_path.is_file() else {}
    special_tokens = _special_tokens(folder, config)
    _register_special(backend, special_tokens)
    return Tokenizer(
        backend,
        tokens=_token_bytes(backend, description.get("decoder"), path),
        special_tokens=special_tokens,
        template=_template(folder, config),
    )


# ---------------------------------------------------------------- files


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path} is {path.stat().st_size} bytes; at most {MAX_CONFIG_BYTES} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(value).__name__}")
    return value


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Named special tokens; special_tokens_map.json fills what tokenizer_config.json leaves out."""
    map_path = folder / "special_tokens_map.json"
    older = _read_json(map_path) if map_path.is_file() else {}
    found: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        token = config.get(name, older.get(name))
        if isinstance(token, dict):  # a serialised AddedToken
            token = token.get("content")
        if isinstance(token, str):
            found[name] = token
    return found


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja wins over the one in tokenizer_config.json; of several the one named "default"."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"chat_template in {folder / 'tokenizer_config.json'} must be text")
    return template


def _register_special(backend: Any, special_tokens: dict[str, str]) -> None:
    """A token that the config names (`eos_token`) is special even where tokenizer.json does not list it as one."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [
        token for token in special_tokens.values() if token not in known and backend.token_to_id(token) is not None
    ]
    if missing:
        backend.add_special_tokens(missing)


# ---------------------------------------------------------------- what a token's bytes are


def _token_bytes(backend: Any, decoder: Any, path: Path) -> TokenBytes:
    """Interpret the decoder once for every token.

    A leading space that a decoder strips from the *whole* text (Strip, Metaspace) is kept: an output continues a
    prompt, where that space belongs.
    """
    steps = list(_decoder_steps(decoder, path))
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    byte_fallback = any(step["type"] == "ByteFallback" for step in steps)
    replacements = [_replacement(step, path) for step in steps if step["type"] in ("Replace", "Metaspace")]
    added = backend.get_added_tokens_decoder()
    pieces: list[bytes] = [b""] * (max((*backend.get_vocab().values(), *added), default=-1) + 1)
    for piece, token_id in backend.get_vocab().items():
        if token_id in added:
            piece = added[token_id].content
        elif byte_level and all(char in _BYTE_OF_CHAR for char in piece):
            pieces[token_id] = bytes(_BYTE_OF_CHAR[char] for char in piece)
            continue
        elif byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            pieces[token_id] = bytes([int(piece[3:5], 16)])
            continue
        for old, new in replacements:
            piece = piece.replace(old, new)
        pieces[token_id] = piece.encode("utf-8")
    special = frozenset(token_id for token_id, token in added.items() if token.special)
    return TokenBytes(pieces=tuple(pieces), special_ids=special)


def _decoder_steps(decoder: Any, path: Path) -> Iterable[dict[str, Any]]:
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "Sequence":
        for step in decoder.get("decoders", []):
            yield from _decoder_steps(step, path)
    elif kind in ("ByteLevel", "ByteFallback", "Replace", "Metaspace", "Fuse", "Strip"):
        yield decoder
    else:
        raise CheckpointError(
            f"tokenizer decoder {kind!r} in {path} is not implemented",
            hint="ByteLevel, ByteFallback, Replace, Metaspace, Fuse and Strip are",
        )


def _replacement(step: dict[str, Any], path: Path) -> tuple[str, str]:
    if step["type"] == "Metaspace":
        return step.get("replacement", "▁"), " "
    pattern, content = step.get("pattern"), step.get("content")
    old = pattern.get("String") if isinstance(pattern, dict) else None
    if not isinstance(old, str) or not isinstance(content, str):
        raise CheckpointError(f"tokenizer decoder Replace with pattern {pattern!r} in {path} is not implemented")
    return old, content


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable alphabet for bytes: printable Latin-1 stands for itself, the others for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    table = {chr(byte): byte for byte in printable}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in printable):
        table[chr(0x100 + offset)] = byte
    return table


_BYTE_OF_CHAR = _byte_of_char()
