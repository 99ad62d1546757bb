"""A grammar of answers that may reason between tags before what must come.

Invariant: what it allows, the reader reads.
"""

from __future__ import annotations

import json

from ridgepoint.server.reasoning.reader import Reasoning


def form_behind(reasoning: Reasoning) -> str | None:
    """A grammar of an answer whose words are a form, which it calls `@form`. None where no reasoning can come any more."""
    tags = reasoning.tags
    # A special token is no text to a grammar, and is named by its id.
    opening, closing = (
        f"<[{tags.special[tag]}]>" if tag in tags.special else json.dumps(tag) for tag in (tags.opening, tags.closing)
    )
    match reasoning.place:
        case "before":
            start = f'("\\n"? {opening} thought breaks)? @form'
        case "inside":
            start = "thought breaks @form"
        case _:
            return None
    text = "/(.|\\n)*/"
    thought = f"thought: {text} {closing}" if tags.closing in tags.special else f"thought[suffix={closing}]: {text}"
    return f'start: {start}\n{thought}\nbreaks: ("\\n" "\\n"?)?\n'
