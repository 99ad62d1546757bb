"""POST /v1/completions in OpenAI's shapes, over an engine that repeats the prompt."""

from __future__ import annotations

import asyncio
import json

import pytest
from toy_engine import ToyEngine, logprob_of


def events(text: str) -> list:
    """The events of a stream; the last is the string "[DONE]"."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_completion_has_openais_shape(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            ids = served.service.tokenizer.encode("Hello")
            response = await served.complete(max_tokens=2 * len(ids))
            body = response.json()
            assert response.status_code == 200
            assert list(body) == ["id", "object", "created", "model", "choices", "usage", "system_fingerprint"]
            assert (body["object"], body["model"], body["id"][:5]) == ("text_completion", "toy", "cmpl-")
            choice = {"text": "HelloHello", "index": 0, "logprobs": None, "finish_reason": "length"}
            assert body["choices"] == [choice]
            usage = body["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(ids), 2 * len(ids))
            assert usage["total_tokens"] == 3 * len(ids)
            assert usage["prompt_tokens_details"]["cached_tokens"] == len(ids) // 2

    asyncio.run(run())


def test_the_default_length_is_openais_sixteen(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            assert (await served.complete()).json()["usage"]["completion_tokens"] == 16

    asyncio.run(run())


def test_a_stream_joins_to_the_whole(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            body = {"prompt": "Zwölf 🦊 漢字", "max_tokens": 40}
            whole = (await served.complete(**body)).json()["choices"][0]
            response = await served.complete(**body, stream=True, stream_options={"include_usage": True})
            assert response.headers["content-type"].startswith("text/event-stream")
            *chunks, last, done = events(response.text)
            assert done == "[DONE]"
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
            assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
            assert all(chunk["usage"] is None for chunk in chunks)
            assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 40)
            assert not any("�" in chunk["choices"][0]["text"] for chunk in chunks)

    asyncio.run(run())


def test_without_include_usage_chunks_do_not_mention_it(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            *chunks, done = events((await served.complete(stream=True)).text)
            assert done == "[DONE]" and not any("usage" in chunk for chunk in chunks)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["Hello", "World"], ["Hello", "World"]),
        ([42, 71], [None]),
        ([[42, 71], [71, 42], [42]], [None, None, None]),
    ],
)
def test_prompts_as_lists(serve, prompt, texts) -> None:
    async def run() -> None:
        async with serve() as served:
            body = (await served.complete(prompt=prompt, n=2, max_tokens=3)).json()
            assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(texts)))
            sent = [submit.prompt_ids for submit in served.engine.submitted]
            assert sent[::2] == sent[1::2] and len(sent) == 2 * len(texts)
            assert body["usage"]["prompt_tokens"] == sum(len(ids) for ids in sent[::2])  # once per prompt
            assert body["usage"]["completion_tokens"] == 3 * len(sent)

    asyncio.run(run())


def test_an_empty_prompt_is_the_start_of_a_document(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            assert (await served.complete(prompt="")).json()["usage"]["prompt_tokens"] == 1
            assert served.engine.submitted[0].prompt_ids == [0]

    asyncio.run(run())


def test_a_stop_string_across_tokens(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            for stop, text in (("lo", "Hel"), (["xyz", "oH"], "Hell"), (["HelloHelloHe"], "HelloHello"[:10])):
                choice = (await served.complete(stop=stop, max_tokens=100)).json()["choices"][0]
                assert (choice["text"], choice["finish_reason"]) == (
                    text if stop != ["HelloHelloHe"] else "", "stop"
                )  # fmt: skip
            kept = (await served.complete(stop="oH", include_stop_str_in_output=True)).json()["choices"][0]
            assert kept["text"] == "HelloH"
            streamed = events((await served.complete(stop="oH", stream=True)).text)
            assert "".join(event["choices"][0]["text"] for event in streamed[:-1]) == "Hell"
            # the engine was told to stop each of them
            assert len(served.engine.cancelled) == 5

    asyncio.run(run())


def test_stop_ids_eos_and_ignore_eos(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            ids = [42, 71, 0, 78]  # 0 is the end of sequence
            body = (await served.complete(prompt=ids)).json()
            assert body["choices"][0]["finish_reason"] == "stop"
            assert body["choices"][0]["text"] == served.service.tokenizer.decode([42, 71])
            assert body["usage"]["completion_tokens"] == 3  # the end itself was generated
            again = (await served.complete(prompt=ids, ignore_eos=True, max_tokens=6)).json()["choices"][0]
            assert again["finish_reason"] == "length"
            stopped = (await served.complete(prompt=[42, 71, 78], stop_token_ids=[71])).json()["choices"][0]
            assert stopped["text"] == served.service.tokenizer.decode([42])

    asyncio.run(run())


def test_logprobs_with_echo(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            tokenizer = served.service.tokenizer
            ids = tokenizer.encode("Hello 🦊")
            body = {"prompt": "Hello 🦊", "echo": True, "logprobs": 2, "max_tokens": len(ids)}
            choice = (await served.complete(**body)).json()["choices"][0]
            assert choice["text"] == "Hello 🦊Hello 🦊"
            logprobs = choice["logprobs"]
            assert list(logprobs) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
            assert logprobs["token_logprobs"] == [None, *(logprob_of(one) for one in (ids + ids)[1:])]
            assert logprobs["top_logprobs"][0] is None and len(logprobs["top_logprobs"][1]) == 2
            for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
                assert token.startswith("bytes:") or choice["text"][offset:].startswith(token)
            *chunks, _ = events((await served.complete(**body, stream=True)).text)
            for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
                parts = [chunk["choices"][0]["logprobs"][name] for chunk in chunks]
                assert [one for part in parts for one in part] == logprobs[name]

    asyncio.run(run())


def test_logprobs_zero_gives_the_chosen_tokens_alone(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            logprobs = (await served.complete(logprobs=0)).json()["choices"][0]["logprobs"]
            assert logprobs["top_logprobs"] is None and len(logprobs["tokens"]) == 16

    asyncio.run(run())


def test_logprobs_stop_where_the_text_stops(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            choice = (await served.complete(stop="lo", logprobs=1, max_tokens=50)).json()["choices"][0]
            assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == "Hel"

    asyncio.run(run())


def test_scoring_a_prompt_without_generating(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            body = (await served.complete(echo=True, logprobs=1, max_tokens=0)).json()
            assert body["choices"][0]["text"] == "Hello"
            assert len(body["choices"][0]["logprobs"]["tokens"]) == body["usage"]["prompt_tokens"]
            assert body["usage"]["completion_tokens"] == 0

    asyncio.run(run())


def test_seeds_differ_between_choices_and_repeat_between_requests(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            for _ in range(2):
                await served.complete(n=3, seed=7)
            seeds = [submit.params.seed for submit in served.engine.submitted]
            assert seeds == [7, 8, 9] * 2
            await served.complete(seed=-1)
            assert served.engine.submitted[-1].params.seed == 2**63 - 1

    asyncio.run(run())


def test_best_of_returns_the_likeliest(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            body = (await served.complete(n=1, best_of=3)).json()
            assert len(body["choices"]) == 1 and len(served.engine.submitted) == 3
            assert body["choices"][0]["logprobs"] is None
            assert body["usage"]["completion_tokens"] == 48  # all that were generated are paid for
            assert (await served.complete(n=2, best_of=1)).status_code == 400
            assert (await served.complete(n=1, best_of=2, stream=True)).status_code == 400

    asyncio.run(run())


def test_every_sampling_field_reaches_the_engine(serve) -> None:
    fields = {
        "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": -0.3, "seed": 3,
        "ignore_eos": True, "logprobs": 4,
    }  # fmt: skip

    async def run() -> None:
        async with serve() as served:
            response = await served.complete(**fields, logit_bias={"5": 2.5}, stop_token_ids=[9, 9, 8])
            assert response.status_code == 200
            params = served.engine.submitted[0].params
            for name, value in fields.items():
                assert getattr(params, name) == value, name
            assert (params.logit_bias, params.stop_token_ids) == ({5: 2.5}, (9, 8))

    asyncio.run(run())


def test_harmless_fields_are_taken_and_nulls_mean_nothing(serve) -> None:
    async def run() -> None:
        async with serve() as served:
            harmless = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "suffix": None}
            nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "logprobs", "seed", "logit_bias", "stream"))
            assert (await served.complete(**harmless, **nulls)).status_code == 200

    asyncio.run(run())


def test_an_engine_that_dies_midway_is_told_in_the_stream(serve) -> None:
    async def run() -> None:
        async with serve(ToyEngine(fail_after=3)) as served:
            response = await served.complete(stream=True)
            *chunks, last = events(response.text)
            assert response.status_code == 200 and len(chunks) == 3
            assert last["error"]["type"] == "server_error" and last["error"]["code"] == "engine_unavailable"
            assert (await served.complete()).status_code == 503
        async with serve(ToyEngine(fail_after=0)) as served:
            assert (await served.complete(stream=True)).status_code == 503  # nothing was sent: the status says it

    asyncio.run(run())
