"""The demo's script: the prices, the calls, and what the scripted model says in each."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

PRICES: Final = (
    ("ContentAgent", "generate_content", Decimal(1)),
    ("ContentAgent", "generate_instagram_reel", Decimal(5)),
    ("VideoAgent", "generate_video", Decimal(10)),
)


class RendererOfflineError(RuntimeError):
    """What the script lets go wrong."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of an agent's method, and what the scripted model will say in it."""

    agent_type: str
    action: str
    topic: str
    lines: tuple[str | Exception, ...]


STEPS: Final = (
    Step(
        "ContentAgent",
        "generate_content",
        "why there are two tides a day",
        (
            "The moon pulls the near sea more, and the far sea less, than the Earth between them.",
            "Two bulges, one turning Earth: that is why the sea comes in twice a day.",
        ),
    ),
    Step(
        "ContentAgent",
        "generate_instagram_reel",
        "a harbour at low tide",
        ("Where did the water go?", "0-2 s boats on mud, 2-5 s the flood in fast motion, 5-7 s everything floats."),
    ),
    Step(
        "VideoAgent",
        "generate_video",
        "the tide coming in",
        ("One long shot from the sea wall, dawn, no cuts.", RendererOfflineError("the renderer went offline")),
    ),
    Step(
        "VideoAgent",
        "generate_video",
        "the tide coming in",
        ("One long shot from the sea wall, dawn, no cuts.", "tide.mp4, 12 seconds, 24 frames per second."),
    ),
    Step(
        "ContentAgent",
        "generate_content",
        "the post for the video",
        ("Twelve seconds hold six hours of water.", "Six hours of sea in twelve seconds. Sound on."),
    ),
    Step("VideoAgent", "generate_video", "a second take", ("never said", "never said")),
)
