"""The report of a batch as text: what was asked, what it costs, what came of it, in three parts (and one for what
nobody knows). On a terminal with pictures, in a pipe or file, or with ``NO_COLOR`` set, without.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from decimal import Decimal
from typing import Final, TextIO

from agentcredits.amounts import from_micros
from agentcredits.media.batch_plan import BatchSummary
from agentcredits.media.jobs import priority_text
from agentcredits.model.media_batches import MediaJobRecord

ASSET_WIDTH: Final = 60
SUMMARY_WIDTH: Final = 80

#: A shortened prompt, its dots included.
PROMPT_WIDTH: Final = 64

#: Cost of a job as text.
Cost = Callable[[MediaJobRecord], str]

_PICTURES: Final = {
    "asset": "🎨 ", "prompt": "📝 ", "cost": "💰 ", "model": "🔧 ", "wait": "⏳ ", "good": "✅ ", "bad": "❌ ",
    "credits": "💳 ", "chart": "📊 ", "skip": "⏭️ ", "unknown": "❓ ", "item": "• ",
}  # fmt: skip


class Style:
    """How things look on a stream.

    Args:
        stream: Where they are shown; pictures on a terminal that can show them, unless ``NO_COLOR`` is set.
        pictures: Decides instead of the stream.
    """

    def __init__(self, stream: TextIO | None = None, *, pictures: bool | None = None) -> None:
        self.pictures = _can_show_pictures(stream) if pictures is None else pictures

    def mark(self, name: str) -> str:
        """A picture with its space; "" (or ``- `` before an item) in plain text."""
        if self.pictures:
            return _PICTURES[name]
        return "- " if name == "item" else ""


def _can_show_pictures(stream: TextIO | None) -> bool:
    if stream is None or os.environ.get("NO_COLOR") or not stream.isatty():
        return False
    try:
        "".join(_PICTURES.values()).encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def cost_text(credits_micros: int, usd: Decimal | None) -> str:
    """``$0.05`` where the price is known in dollars, else ``5 credits``."""
    if usd is not None:
        return f"${usd:.2f}" if usd == round(usd, 2) else f"${usd.normalize():f}"
    return f"{from_micros(credits_micros):,f} credits"


def asset_head(job: MediaJobRecord, cost: str, style: Style, *, asset_type: str, scene: object = None) -> str:
    """What is about to be made."""
    lines = ["=" * ASSET_WIDTH, f"{style.mark('asset')}Generating {asset_type}: {job.name}"]
    lines += [] if scene is None else [f"   Scene: {scene}"]
    lines += [f"   Priority: {priority_text(job.priority)}", "=" * ASSET_WIDTH, ""]
    lines += [f"{style.mark('prompt')}Prompt: {job.shown_prompt}", f"{style.mark('cost')}Estimated Cost: {cost}"]
    lines += [] if job.model is None else [f"{style.mark('model')}Model: {job.model}"]
    return "\n".join(lines) + "\n"


def summary_text(summary: BatchSummary, cost: Cost, style: Style) -> str:
    """The summary of a batch; what was not made counts as failed in its first lines, and is listed with its cost."""
    total, good = len(summary.jobs), len(summary.successful)
    lines = ["=" * SUMMARY_WIDTH, f"{style.mark('chart')}GENERATION SUMMARY", "=" * SUMMARY_WIDTH, ""]
    lines += [f"{style.mark('good')}Successful: {good}/{total}", f"{style.mark('bad')}Failed: {total - good}/{total}"]
    item = f"   {style.mark('item')}"
    if summary.successful:
        lines += ["", f"{style.mark('good')}SUCCESSFUL GENERATIONS:"]
        lines += [f"{item}{job.asset_id}: {job.name} ({priority_text(job.priority)})" for job in summary.successful]
    if summary.failed:
        lines += ["", f"{style.mark('bad')}FAILED (nothing charged unless it says so):"]
        for job in summary.failed:
            lines += [
                f"{item}{job.asset_id}: {job.name} - {job.reason}{_charged(job)}",
                f"     {_short(job.message or '')}",
            ]
    if summary.unknown:
        lines += ["", f"{style.mark('unknown')}UNKNOWN (called, no answer; held, and not sent again by itself):"]
        lines += [f"{item}{job.asset_id}: {job.name} - {cost(job)}{_reference(job)}" for job in summary.unknown]
    if summary.dry_run:
        lines += ["", f"{style.mark('prompt')}DRY-RUN / NO CREDITS (Prompt & Cost Displayed):"]
        for job in summary.dry_run:
            lines += [f"{item}{job.asset_id}: {job.name} - {cost(job)}", f"     Prompt: {_short(job.shown_prompt)}"]
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    return textwrap.shorten(text, PROMPT_WIDTH, placeholder="...")


def _charged(job: MediaJobRecord) -> str:
    return "" if not job.charged_micros else f", charged {from_micros(job.charged_micros):f} credits"


def _reference(job: MediaJobRecord) -> str:
    return "" if job.provider_reference is None else f" (request {job.provider_reference})"
