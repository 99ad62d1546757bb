"""Which form of calls a model writes, by the marks that its chat template's text shows."""

from __future__ import annotations

from ridgepoint.server.tool_calls.form import ToolFormat
from ridgepoint.server.tool_calls.json_calls import JsonCalls, JsonList, NamedJson
from ridgepoint.server.tool_calls.tagged_calls import TaggedCalls


def format_of(template: str) -> ToolFormat | None:
    """The format that a chat template's text shows."""
    if "minimax:tool_call" in template:
        return TaggedCalls(
            "<minimax:tool_call>", "</minimax:tool_call>", head='<invoke name="NAME">\n', tail="</invoke>\n",
            key='<parameter name="NAME">', value_end="</parameter>\n", several=True,
            marks=("<minimax:tool_call>", "</minimax:tool_call>"),
        )  # fmt: skip
    if "<arg_key>" in template:
        return TaggedCalls(
            "<tool_call>", "</tool_call>", head="NAME\n", tail="", key="<arg_key>NAME</arg_key>\n<arg_value>",
            value_end="</arg_value>\n", several=False,
            marks=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        )  # fmt: skip
    if "<tool_call>" in template and "<function=" in template:
        return TaggedCalls(
            "<tool_call>", "</tool_call>", head="\n<function=NAME>\n", tail="</function>\n", key="<parameter=NAME>\n",
            value_end="\n</parameter>\n", several=False, marks=("<tool_call>", "</tool_call>"),
        )  # fmt: skip
    if "<tool_call>" in template and '"arguments"' in template.replace("\\", ""):
        return JsonCalls()
    if "<｜tool▁calls▁begin｜>" in template:
        fenced = "```json" in template
        return NamedJson(
            "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
            before="<｜tool▁call▁begin｜>" + ("function<｜tool▁sep｜>" if fenced else ""),
            between="\n```json\n" if fenced else "<｜tool▁sep｜>",
            after=("\n```" if fenced else "") + "<｜tool▁call▁end｜>", separator="\n" if fenced else "",
        )  # fmt: skip
    if "[TOOL_CALLS]" in template and "[ARGS]" in template:
        return NamedJson(
            "[TOOL_CALLS]", None, before="", between="[ARGS]", after="", separator="[TOOL_CALLS]", id_chars=9
        )
    if "[TOOL_CALLS]" in template:
        return JsonList("[TOOL_CALLS]", None, " ", 9)
    if "<|tool_call|>" in template:
        return JsonList("<|tool_call|>", "<|/tool_call|>" if "<|/tool_call|>" in template else None, "", 24)
    return None
