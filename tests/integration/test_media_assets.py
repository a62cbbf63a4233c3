"""AssetGenerator: the layout and facts of the report that it is known for, on a terminal, in a pipe, and as data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentcredits import PriceRule, SyncCreditService
from agentcredits.errors import ConfigurationError, InvalidInputError, UnpricedActionError
from agentcredits.media import AssetGenerator
from agentcredits.media.batch_plan import manifest_json
from agentcredits.media.manifest import list_batches
from agentcredits.media.report import Style, cost_text
from agentcredits.service import core_of

ACME = "acme"

#: In US dollars, as the generator's own configuration had them.
MODEL_PRICING = {
    "fal-ai/minimax/video-01": "0.50",
    "fal-ai/flux/dev": "0.05",
    "fal-ai/flux/schnell": "0.01",
}

WITH_CREDITS = """\
============================================================
🎨 Generating image: futuristic_city
   Scene: 1
   Priority: HIGH
============================================================

📝 Prompt: A futuristic cityscape with flying cars and neon lights
💰 Estimated Cost: $0.05
🔧 Model: fal-ai/flux/dev
⏳ Sending request to fal.ai...
✅ Generated successfully!
   URL: https://fal.ai/files/futuristic_city.png
"""

WITHOUT_CREDITS = """\
============================================================
🎨 Generating image: futuristic_city
   Scene: 1
   Priority: HIGH
============================================================

📝 Prompt: A futuristic cityscape with flying cars and neon lights
💰 Estimated Cost: $0.05
🔧 Model: fal-ai/flux/dev

💳 NO CREDITS AVAILABLE - Displaying prompt and cost only
   Top up your balance at: https://fal.ai/dashboard/billing
"""

SUMMARY = """\
================================================================================
📊 GENERATION SUMMARY
================================================================================

✅ Successful: 2/5
❌ Failed: 3/5

✅ SUCCESSFUL GENERATIONS:
   • 1.0: asset_one (HIGH)
   • 2.0: asset_two (MEDIUM)

📝 DRY-RUN / NO CREDITS (Prompt & Cost Displayed):
   • 3.0: asset_three - $0.05
     Prompt: A beautiful mountain landscape at sunset with reflective lake...
   • 4.0: asset_four - $0.01
     Prompt: Abstract geometric patterns with vibrant colors and dynamic...
   • 5.0: asset_five - $0.05
     Prompt: Futuristic robot assistant with holographic display panels...
"""

CITY = {
    "id": "1.0",
    "name": "futuristic_city",
    "scene": 1,
    "priority": "HIGH",
    "prompt": "A futuristic cityscape with flying cars and neon lights",
    "model": "fal-ai/flux/dev",
    "seed_key": "SEED_001",
}

QUEUE = [
    {"id": 1.0, "name": "asset_one", "prompt": "One", "model": "fal-ai/flux/dev", "priority": "HIGH"},
    {"id": 2.0, "name": "asset_two", "prompt": "Two", "model": "fal-ai/flux/dev", "priority": "MEDIUM"},
    {
        "id": 3.0,
        "name": "asset_three",
        "prompt": "A beautiful mountain landscape at sunset with reflective lake water and a rowing boat",
        "model": "fal-ai/flux/dev",
    },
    {
        "id": 4.0,
        "name": "asset_four",
        "prompt": "Abstract geometric patterns with vibrant colors and dynamic composition",
        "model": "fal-ai/flux/schnell",
    },
    {
        "id": 5.0,
        "name": "asset_five",
        "prompt": "Futuristic robot assistant with holographic display panels floating around it",
        "model": "fal-ai/flux/dev",
    },
]


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class FakeFalError(Exception):
    status_code = 403


class YourGenerator(AssetGenerator):
    """As the guide shows it; a fake of fal that makes ``balance`` pictures."""

    balance = 1_000
    queue: Sequence[Mapping[str, Any]] = QUEUE

    def get_generation_queue(self) -> Sequence[Mapping[str, Any]]:
        return self.queue

    def call(self, model: str, arguments: Mapping[str, Any]) -> Any:
        self.called = [*getattr(self, "called", []), dict(arguments)]
        if self.balance < 1:
            raise FakeFalError("User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard.")
        self.balance -= 1
        return {"images": [{"url": "https://fal.ai/files/futuristic_city.png"}], "model": model}


Make = Callable[..., YourGenerator]


@pytest.fixture
def make(service: SyncCreditService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A generator on a terminal; 100 credits are a dollar, acme has 1,000."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("agentcredits.media.files.download", _no_network)
    service.grant_credits(ACME, 1_000)
    rows = [{"model": model, "usd": usd} for model, usd in MODEL_PRICING.items()]
    service.set_cost("YourGenerator", "generate_image", PriceRule.table(("model",), rows, credits_per_usd=100))

    def generator(**options: Any) -> YourGenerator:
        return YourGenerator(
            tmp_path / "out",
            {"SEED_001": 42},
            {"primary": "#0055ff"},
            **{"service": service, "organization_id": ACME, "stream": FakeTerminal(), **options},
        )

    return generator


def _no_network(url: str, path: Path) -> Path:
    target = path.with_suffix(".png")
    target.write_text(url)
    return target


def shown(generator: YourGenerator) -> str:
    stream = generator._stream
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_the_report_of_an_asset_is_as_it_was(make: Make) -> None:
    generator = make()
    answer = generator.generate_asset(CITY)
    assert shown(generator) == WITH_CREDITS + "\n"
    assert generator.called == [{"prompt": CITY["prompt"], "seed": 42}]
    assert (answer["success"], answer["url"], answer["estimated_cost"], answer["charged"]) == (
        True, "https://fal.ai/files/futuristic_city.png", Decimal("0.05"), 5
    )  # fmt: skip


def test_the_report_without_credits_is_as_it_was(make: Make) -> None:
    """Once credits ran out the next asset is only shown, and fal is not asked any more."""
    generator = make()
    generator.balance = 0
    generator.generate_asset({**CITY, "id": "0", "name": "before"})
    assert generator.credits_exhausted
    assert "⏳ Sending request to fal.ai...\n\n💳 NO CREDITS AVAILABLE" in shown(generator)
    generator._stream = FakeTerminal()
    answer = generator.generate_asset(CITY)
    assert shown(generator) == WITHOUT_CREDITS + "\n"
    assert len(generator.called) == 1
    assert (answer["success"], answer["dry_run"], answer["estimated_cost"], answer["charged"]) == (
        False, True, Decimal("0.05"), 0
    )  # fmt: skip


def test_the_summary_is_as_it_was(make: Make, service: SyncCreditService) -> None:
    generator = make()
    generator.balance = 2
    answers = generator.process_queue()
    assert shown(generator).endswith(SUMMARY)
    assert [answer["success"] for answer in answers] == [True, True, False, False, False]
    assert [str(answer["estimated_cost"]) for answer in answers] == ["0.05", "0.05", "0.05", "0.01", "0.05"]
    assert service.get_balance(ACME).spent == 10
    data = json.loads(manifest_json(generator.as_dict()))
    assert [entry["name"] for entry in data["results"] if entry["dry_run"]] == [
        "asset_three", "asset_four", "asset_five"
    ]  # fmt: skip
    assert (data["successful"], data["dry_run"], data["charged"]) == ([1, 2], [3, 4, 5], 10)


def test_a_resume_after_the_top_up_makes_the_rest(make: Make, service: SyncCreditService) -> None:
    generator = make()
    generator.balance = 2
    generator.process_queue()
    assert generator.summary is not None
    generator.balance = 100
    answers = generator.resume(generator.summary.batch.id)
    assert [answer["success"] for answer in answers] == [True] * 5
    assert not generator.credits_exhausted
    assert len(generator.called) == 6
    assert service.get_balance(ACME).spent == 21


def test_a_pipe_and_no_color_get_plain_text(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make(stream=io.StringIO())
    plain.balance = 2
    plain.process_queue()
    text = shown(plain)
    assert text.isascii()
    assert "Generating image: asset_one\n" in text
    assert "   - 3.0: asset_three - $0.05\n" in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style(FakeTerminal()).pictures
    monkeypatch.delenv("NO_COLOR")
    assert Style(FakeTerminal()).pictures
    old = FakeTerminal()
    old.encoding = "cp1252"  # type: ignore[misc]
    assert not Style(old).pictures


def test_an_explicit_dry_run_calls_and_writes_nothing(make: Make, service: SyncCreditService) -> None:
    generator = make(dry_run=True)
    answers = generator.process_queue()
    assert not hasattr(generator, "called")
    assert {answer["dry_run"] for answer in answers} == {True}
    assert shown(generator).count("💳 DRY RUN - Displaying prompt and cost only") == 5
    assert "NO CREDITS AVAILABLE" not in shown(generator)
    assert service.get_balance(ACME).available == 1_000
    assert list_batches(core_of(service), ACME, 5) == ()
    assert not generator.output_dir.exists()


def test_what_costs_more_than_a_fifth_of_a_dollar_is_skipped_unless_confirmed(make: Make) -> None:
    video = {"id": 9, "name": "video", "prompt": "A wave", "model": "fal-ai/minimax/video-01"}
    generator = make()
    answer = generator.generate_asset(video)
    assert (answer["reason"], answer["error"]) == ("cost_threshold", "It costs more than 0.20 USD.")
    assert "⏭️ SKIPPED - It costs more than 0.20 USD." in shown(generator)
    assert not generator.credits_exhausted
    assert make(confirm=lambda question: question.usd == Decimal("0.50")).generate_asset(video)["success"]
    assert make(threshold_usd=None).generate_asset(video)["success"]


def test_the_threshold_needs_to_know_what_a_dollar_is_worth(make: Make, service: SyncCreditService) -> None:
    service.set_cost("YourGenerator", "generate_image", 5)
    with pytest.raises(ConfigurationError, match="credits_per_usd"):
        make().generate_asset(CITY)
    assert make(credits_per_usd=100).generate_asset(CITY)["estimated_cost"] == Decimal("0.05")


def test_the_customers_own_credits_are_named_without_the_providers_address(
    make: Make, service: SyncCreditService
) -> None:
    service.adjust_credits(ACME, -998)
    generator = make()
    generator.generate_asset(CITY)
    assert "organization acme has 2 credits available, generate_image needs 5; short by 3." in shown(generator)
    assert "fal.ai/dashboard" not in shown(generator)


def test_bad_assets_are_named(make: Make) -> None:
    for config, words in (
        ({**CITY, "prompt": None}, "asset futuristic_city: prompt is missing"),
        ({**CITY, "priority": "soon"}, "priority must be HIGH, MEDIUM, LOW"),
        ("a city", "an asset must be a mapping"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            make().generate_asset(config)  # type: ignore[arg-type]
    with pytest.raises(UnpricedActionError, match=r"asset 1 \(futuristic_city\): "):
        make().generate_asset({**CITY, "model": "fal-ai/unheard-of"})


@pytest.mark.parametrize(
    ("text", "credit"),
    [
        ("User is locked. Reason: Exhausted balance.", True),
        ("Insufficient credits", True),
        ("Please top up your balance", True),
        ("User is locked. Reason: Admin lock.", True),
        ("Rate limit exceeded", False),
        ("the file was not found", False),
    ],
)
def test_credit_errors_are_known_by_their_words(make: Make, text: str, credit: bool) -> None:
    assert make().is_credit_error(text) is credit
    assert make().is_credit_error(RuntimeError(text)) is credit


def test_costs_as_text() -> None:
    assert [cost_text(5_000_000, usd) for usd in (Decimal("0.05"), Decimal("0.0030"), Decimal(2), None)] == [
        "$0.05", "$0.003", "$2.00", "5 credits"
    ]  # fmt: skip
