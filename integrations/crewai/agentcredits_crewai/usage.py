"""The tokens of an LLM call, read where CrewAI itself counts them: in the caller's own thread and context.

Events lose usage and ``crew.usage_metrics`` counts a shared LLM once for every agent, so neither is used.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from crewai.types.usage_metrics import UsageMetrics

from agentcredits_crewai.runs import CALL

_COUNTER = "_track_token_usage_internal"
_PATCHED = "__agentcredits_patched__"
_lock = threading.Lock()

#: Bedrock's own names, which ``UsageMetrics`` does not know. As with Anthropic, the input is only what was neither read
#: from the cache nor written there.
_BEDROCK = dict.fromkeys(("cacheReadInputTokens", "cacheReadInputTokenCount"), "cache_read_input_tokens")
_BEDROCK |= dict.fromkeys(("cacheWriteInputTokens", "cacheWriteInputTokenCount"), "cache_creation_input_tokens")
_BEDROCK |= {"inputTokens": "input_tokens", "outputTokens": "output_tokens"}


def watch(llm: object) -> None:
    """Listen to the token counter of an LLM's class; each class that has a counter of its own, once."""
    for cls in type(llm).__mro__:
        counter = vars(cls).get(_COUNTER)
        if counter is not None and not hasattr(counter, _PATCHED):
            with _lock:
                if not hasattr(vars(cls)[_COUNTER], _PATCHED):
                    setattr(cls, _COUNTER, _listening(counter))

    _watch_bodies()


def _watch_bodies() -> None:
    """An answer that cannot be parsed never reaches the counter, and was paid for: read its usage from the body."""
    module: Any = sys.modules.get("crewai.llms.providers.openai.completion")
    check = getattr(module, "_raise_for_upstream_error", None)
    if check is None or hasattr(check, _PATCHED):
        return

    @functools.wraps(check)
    def read(body: Any, *args: Any, **kwargs: Any) -> Any:
        call = CALL.get()
        if call is not None:
            with suppress(ValueError, AttributeError):
                call.unparsed = normalised(json.loads(body).get("usage"))
        return check(body, *args, **kwargs)

    setattr(read, _PATCHED, True)
    module._raise_for_upstream_error = read


def _listening(counter: Any) -> Any:
    @functools.wraps(counter)
    def count(self: Any, usage: Any, *args: Any, **kwargs: Any) -> Any:
        call = CALL.get()
        if call is None or call.is_counting:  # a counter that calls its parent's
            return counter(self, usage, *args, **kwargs)
        call.is_counting = True
        call.unparsed = {}
        try:
            return counter(self, usage, *args, **kwargs)
        finally:
            call.is_counting = False
            call.add(normalised(usage))

    setattr(count, _PATCHED, True)
    return count


def normalised(usage: Any) -> dict[str, int]:
    """A provider's usage as CrewAI's own names: ``prompt_tokens``, ``completion_tokens``, ``total_tokens`` …"""
    if not isinstance(usage, Mapping):
        return {}
    known: dict[str, Any] = {_BEDROCK.get(str(name), str(name)): count for name, count in usage.items()}
    metrics = UsageMetrics.from_provider_dict(known)
    return {} if metrics is None else {name: count for name, count in metrics.model_dump().items() if count}
