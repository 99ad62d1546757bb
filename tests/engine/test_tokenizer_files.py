"""Tokenizers of checkpoint folders agree with transformers: ids, BOS, text, chat templates. Damaged ones are refused."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgepoint.engine.chat_template import ChatTemplate
from ridgepoint.engine.tokenizer import load_tokenizer
from ridgepoint.errors import CheckpointError, RequestError

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from tiny_tokenizer import CORPUS, write_tokenizer

TEXTS = ["Hello, world", " leading", "trailing ", "Zwölf 🦊 漢字", "a\n\tb", "<|im_start|>user", "", "\x00\x7f"]


def sentencepiece_folder(folder: Path, **config: object) -> Path:
    """A tokenizer of the Llama-2 kind: metaspace, byte fallback, BOS by its post-processor."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([text.replace(" ", "▁") for text in CORPUS[:2]], trainer)
    data = json.loads(tokenizer.to_str())
    for token in byte_tokens:
        data["model"]["vocab"].setdefault(token, len(data["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings_ = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return folder


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "bytes")


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_folder(tmp_path_factory.mktemp("tokenizer") / "pieces")


def transformers_tokenizer(folder: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_ids_are_those_of_transformers(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    ours, theirs = load_tokenizer(folder), transformers_tokenizer(folder)
    for text in TEXTS:
        for special in (True, False):
            assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_bos_is_added_as_transformers_does(flags: dict[str, bool], tmp_path: Path) -> None:
    folder = sentencepiece_folder(tmp_path / "pieces", **flags)
    assert load_tokenizer(folder).encode("Hello there") == transformers_tokenizer(folder).encode("Hello there")


def test_the_text_of_ids_is_the_text_they_came_from(byte_level: Path, sentencepiece: Path) -> None:
    for text in TEXTS:
        tokenizer = load_tokenizer_once(byte_level)
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
        tokenizer = load_tokenizer_once(sentencepiece)
        # this kind puts a space before the text, which belongs to an output that continues a prompt
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == (f" {text}" if text else "")


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 399), max_size=20))
def test_any_ids_give_the_text_that_the_library_gives(byte_level: Path, ids: list[int]) -> None:
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    for skip in (True, False):
        assert load_tokenizer_once(byte_level).decode(ids, skip_special=skip) == library.decode(
            ids, skip_special_tokens=skip
        )


load_tokenizer_once = cache(load_tokenizer)


def test_special_tokens_are_known_by_name(byte_level: Path, sentencepiece: Path) -> None:
    assert (load_tokenizer(byte_level).bos_id, load_tokenizer(byte_level).eos_id) == (None, 0)
    assert (load_tokenizer(sentencepiece).bos_id, load_tokenizer(sentencepiece).eos_id) == (1, 2)


# ---------------------------------------------------------------- damage


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": "1.0"}', "[" * 100_000])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_an_unknown_decoder_is_refused_by_name(byte_level: Path, tmp_path: Path) -> None:
    data = json.loads((byte_level / "tokenizer.json").read_text())
    data["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="'WordPiece'"):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------- chat templates

MESSAGES = [{"role": "system", "content": "Be <brief> & é."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}\n{% endfor %}",
        "{{ bos_token }}{% if add_generation_prompt %}[A]{% endif %}{% if tools %}tools{% endif %}",
        "{% for m in messages %}\n    {% if m.role == 'system' %}{% continue %}{% endif %}\n  {{ m.content }}\n{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ messages | tojson(indent=2) }}{{ messages[0].content.split('&')[0].strip() }}",
    ],
)
def test_templates_render_as_in_transformers(tmp_path: Path, template: str) -> None:
    folder = sentencepiece_folder(tmp_path / "pieces", chat_template=template)
    theirs = transformers_tokenizer(folder).apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ours = load_tokenizer(folder).chat_template
    assert ours is not None
    assert ours.render(MESSAGES, add_generation_prompt=True, variables={}) == theirs


def test_a_jinja_file_wins_over_the_config(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "bytes")
    (folder / "chat_template.jinja").write_text("from the file")
    template = load_tokenizer(folder).chat_template
    assert template is not None and template.source == "from the file"


def render(template: str) -> str:
    return ChatTemplate(template, special_tokens={}, origin="a test").render(
        [dict(message) for message in MESSAGES], add_generation_prompt=True, variables={}
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only two roles') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.__init__.__globals__ }}",
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
        "{{ missing.attribute.deeper }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 2 * 10**7 }}",
    ],
)
def test_a_template_that_fails_or_escapes_is_a_refusal(template: str) -> None:
    with pytest.raises(RequestError, match="chat template"):
        render(template)


@pytest.mark.parametrize("template", ["{% for %}", "{{", "{% unknown %}"])
def test_a_template_that_is_no_template_is_refused_at_load(template: str) -> None:
    with pytest.raises(CheckpointError, match="line 1"):
        ChatTemplate(template, special_tokens={}, origin="a test")
