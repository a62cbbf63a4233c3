"""FakeLLM stands in for a provider, so that the examples need no network and no key; yours is "openai/gpt-4o-mini"."""

from __future__ import annotations

import json
from typing import Any

from crewai import BaseLLM
from pydantic import Field

Line = str | tuple[str, dict[str, Any]]


class FakeLLM(BaseLLM):
    """Says its lines in turn, the last one for ever. A line is a text, or a tool's name and its arguments."""

    lines: list[Line] = Field(min_length=1)
    calls: int = 0

    def call(self, *_args: Any, **_kwargs: Any) -> Any:
        line = self.lines[min(self.calls, len(self.lines) - 1)]
        self.calls += 1
        self._track_token_usage_internal({"prompt_tokens": 100, "completion_tokens": 10})
        if isinstance(line, str):
            return line
        name, arguments = line
        return [{"id": "call", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}]

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def supports_function_calling(self) -> bool:
        return True

    def get_input_tokens_count(self, *_args: Any, **_kwargs: Any) -> int:
        return 0
