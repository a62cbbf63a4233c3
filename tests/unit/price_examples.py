"""Price rules that several test modules use."""

from __future__ import annotations

from agentcredits import PriceRule

MODELS = PriceRule.table(
    ("model", "resolution", "duration"),
    [
        {"model": "Hailuo", "resolution": "512P", "duration": 6, "credits": 320},
        {"model": "Hailuo", "resolution": "1080P", "duration": 6, "credits": 1100},
        {"model": ["Director-T", "Director-I"], "credits": "980"},
        {"model": "Turbo", "rule": PriceRule.flat(2, per="duration")},
    ],
)

TOKENS = PriceRule.tokens(input="2.5", output=10, cached_input="1.25", credits_per_usd=1000)
