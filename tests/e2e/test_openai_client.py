"""The official openai client against a real server process: what its users do, and what the server must survive."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest
from serving import ServerProcess


@pytest.fixture
def client(echo: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{echo.url}/v1", api_key="none", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").id == "echo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="Hello 🦊", max_tokens=20, logprobs=2, n=2, seed=1)
    assert len(answer.choices) == 2 and answer.choices[0].text.startswith("Hello 🦊")
    assert answer.choices[0].logprobs is not None and len(answer.choices[0].logprobs.tokens or []) == 20
    assert answer.usage is not None and answer.usage.completion_tokens == 40
    pieces = client.completions.create(model="echo", prompt="Hello 🦊", max_tokens=20, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_chat_completions(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "é"}, {"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(
        model="echo", messages=messages, max_completion_tokens=12, logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].logprobs is not None and len(answer.choices[0].logprobs.content or []) == 12
    stream = client.chat.completions.create(
        model="echo", messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 12


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with client.chat.completions.stream(model="echo", messages=messages, stop="hi") as stream:  # type: ignore[arg-type]
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        choice = stream.get_final_completion().choices[0]
    assert (text, choice.message.content, choice.finish_reason) == ("user\n", "user\n", "stop")


def test_prefixes_are_found_again(client: openai.OpenAI) -> None:
    prompt = list(range(100, 200))
    for expected in (0, 96):  # whole blocks of 16 are found again
        answer = client.completions.create(model="echo", prompt=prompt, max_tokens=1)
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == expected
    other = client.completions.create(model="echo", prompt=prompt, max_tokens=1, extra_body={"cache_salt": "mine"})
    assert other.usage is not None and other.usage.prompt_tokens_details is not None
    assert other.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (openai.BadRequestError, {"max_tokens": 10**9}),
        (openai.BadRequestError, {"max_tokens": 10**30}),
        (openai.BadRequestError, {"logprobs": 99}),
        (openai.BadRequestError, {"prompt": [10**9]}),
        (openai.BadRequestError, {"extra_body": {"nonsense": 1}}),
        (openai.NotFoundError, {"model": "other"}),
    ],
)
def test_errors_arrive_as_the_clients_own(client: openai.OpenAI, error: type[Exception], fields: dict) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**({"model": "echo", "prompt": "a"} | fields))
    assert caught.value.body["message"]  # type: ignore[attr-defined]


def test_llama_cpp_style_edges(client: openai.OpenAI) -> None:
    def text(prompt: object, **options: object) -> str:
        return client.completions.create(model="echo", prompt=prompt, **options).choices[0].text  # type: ignore[call-overload]

    assert text("") == ""  # the start of a document, which this model ends at once
    assert text("漢字🦊", max_tokens=200, stop="🦊") == "漢字"
    assert text("one two three", max_tokens=50, stop=["wo th"]) == "one t"
    with httpx.Client() as http:  # bytes that are no UTF-8, token by token: E2 82 | 41 | F0 9F and the end
        ids = {bytes([byte]): None for byte in (0xE2, 0x82, 0x41, 0xF0, 0x9F)}
        for raw in ids:
            ids[raw] = _id_of(http, client, raw)
        prompt = [ids[raw] for raw in (b"\xe2", b"\x82", b"A", b"\xf0", b"\x9f")]
        pieces = client.completions.create(model="echo", prompt=prompt, max_tokens=5, stream=True)
        assert [piece.choices[0].text for piece in pieces if piece.choices[0].text] == ["�A", "�"]


def _id_of(http: httpx.Client, client: openai.OpenAI, raw: bytes) -> int:
    """The id of a one-byte token, found by asking for the log-probability names of every id."""
    root = str(client.base_url).removesuffix("/v1/")
    ids = range(3, 259)
    reply = http.post(
        f"{root}/v1/completions", json={"prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 0}
    )
    names = reply.json()["choices"][0]["logprobs"]["tokens"]
    name = raw.decode() if raw.isascii() else f"bytes:\\x{raw[0]:02x}"
    return ids[names.index(name)]


def test_sixty_four_streams_a_third_cancelled_leave_nothing_behind(echo: ServerProcess) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{echo.url}/v1", api_key="none", max_retries=0) as client:

            async def one(index: int) -> str:
                max_tokens = 1900 if index % 3 == 0 else 120  # the cancelled ones would run for long
                stream = await client.completions.create(
                    model="echo", prompt=f"stream {index % 8} says", max_tokens=max_tokens, stream=True, seed=index % 8
                )
                text, num_pieces = "", 0
                async for piece in stream:
                    text += piece.choices[0].text
                    num_pieces += 1
                    if index % 3 == 0 and num_pieces == 5 + index % 7:
                        await stream.close()
                        return "cancelled"
                return text

            texts = await asyncio.gather(*(one(index) for index in range(64)))
            whole = [text for text in texts if text != "cancelled"]
            assert len(whole) == 42
            for index, text in enumerate(texts):
                if text != "cancelled":
                    assert text == next(t for i, t in enumerate(texts) if i % 8 == index % 8 and t != "cancelled")

    aborted = 'ridgepoint:request_success_total{finished_reason="abort"}'
    before = echo.metrics()[aborted]
    asyncio.run(asyncio.wait_for(run(), 60))
    echo.wait_for_metric("ridgepoint:num_requests_in_flight", 0)
    echo.wait_for_metric("ridgepoint:kv_blocks_used", 0)
    assert echo.metrics()[aborted] - before == 22


def test_hanging_up_frees_the_blocks_of_a_plain_request_too(echo: ServerProcess) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(base_url=echo.url) as http:
            body = {"prompt": "never ends", "max_tokens": 1900}
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/completions", json=body, timeout=httpx.Timeout(5, read=0.3))

    asyncio.run(run())
    echo.wait_for_metric("ridgepoint:num_requests_in_flight", 0)
    echo.wait_for_metric("ridgepoint:kv_blocks_used", 0)
    echo.wait_for(r"event=request .* status=499 .* finish=abort")


def test_metrics_carry_the_names_of_the_field(echo: ServerProcess, client: openai.OpenAI) -> None:
    client.completions.create(model="echo", prompt="count me", max_tokens=4)
    metrics = echo.metrics()
    for name in (
        "time_to_first_token_seconds_count", "inter_token_latency_seconds_count", "e2e_request_latency_seconds_sum",
        "request_time_per_output_token_seconds_count", "request_queue_time_seconds_count", "num_requests_running",
        "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_hits_total", "prefix_cache_queries_total",
        "num_preemptions_total", "prompt_tokens_total", "generation_tokens_total",
        'request_success_total{finished_reason="length"}',
    ):  # fmt: skip
        assert f"ridgepoint:{name}" in metrics, name
    assert metrics["ridgepoint:time_to_first_token_seconds_count"] >= 1


def test_tokenize_and_detokenize(echo: ServerProcess) -> None:
    for text in ("Hello 🦊", "", "\x00"):
        reply = httpx.post(f"{echo.url}/tokenize", json={"prompt": text, "return_token_strs": True}).json()
        assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
        back = httpx.post(f"{echo.url}/detokenize", json={"tokens": reply["tokens"]}).json()
        assert back == {"prompt": text}
    chat = httpx.post(f"{echo.url}/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert chat["count"] > 5
    assert httpx.post(f"{echo.url}/tokenize", json={}).status_code == 400
    assert httpx.post(f"{echo.url}/detokenize", json={"tokens": [400]}).status_code == 400


def test_a_chunked_body_without_a_length_is_limited(echo: ServerProcess) -> None:
    def chunks():
        for _ in range(64):
            yield b" " * 65536

    try:
        response = httpx.post(
            f"{echo.url}/v1/completions", content=chunks(), headers={"content-type": "application/json"}
        )
        assert response.status_code == 413 and json.loads(response.text)["error"]["code"] == "body_too_large"
    except (httpx.WriteError, httpx.RemoteProtocolError):
        echo.wait_for(r"event=request .* status=413")  # it hung up on us while we were still sending
