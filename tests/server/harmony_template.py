"""A chat template that takes and shows conversations in the way gpt-oss's does, and no other."""

from __future__ import annotations

TEMPLATE = """
{%- set head = messages[0] if messages[0].role in ("system", "developer") else none -%}
<|start|>system<|message|>Reasoning: {{ reasoning_effort or "medium" }}<|end|>
{%- if head or tools -%}
<|start|>developer<|message|>{{ head.content if head else "" }}
{%- for tool in tools or [] %}{{ "// " + tool.function.description + " type " + tool.function.name }}{% endfor -%}
<|end|>
{%- endif -%}
{%- set called = namespace(name=none) -%}
{%- for message in (messages[1:] if head else messages) -%}
{%- if message.role == "user" -%}
<|start|>user<|message|>{{ message.content }}<|end|>
{%- elif message.role == "tool" -%}
<|start|>functions.{{ called.name }} to=assistant<|channel|>commentary<|message|>{{ message.content | tojson }}<|end|>
{%- elif message.role == "assistant" and "tool_calls" in message -%}
{%- if message.content and message.thinking %}{{ raise_exception("both content and thinking") }}{% endif -%}
{%- if message.content or message.thinking -%}
<|start|>assistant<|channel|>analysis<|message|>{{ message.content or message.thinking }}<|end|>
{%- endif -%}
{%- set called.name = message.tool_calls[0].function.name -%}
<|start|>assistant to=functions.{{ called.name }}<|channel|>commentary json<|message|>
{{- message.tool_calls[0].function.arguments | tojson }}<|call|>
{%- elif message.role == "assistant" -%}
{%- if loop.last and not add_generation_prompt and message.thinking -%}
<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>
{%- endif -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}
{{- "<|return|>" if loop.last and not add_generation_prompt else "<|end|>" }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|start|>assistant{% endif -%}
"""
