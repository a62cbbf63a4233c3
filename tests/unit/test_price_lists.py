"""Price lists: those that ship say what their sources say; a slip in one's own is told with its line and field."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from agentcredits import InvalidInputError, PriceEntry, PriceList, PriceRule, UnpricedActionError
from agentcredits.price_lists import needs_rate, shipped_lists
from agentcredits.rules.pricing import CostRow, price
from agentcredits.store.tables import DEFAULT_COSTS

NOW = datetime(2026, 11, 21, tzinfo=UTC)

#: A studio's list: action, model, resolution, duration, credits. 19 lines.
STUDIO: list[tuple[str, str, str | None, int | None, int]] = [
    ("generate_video", "MiniMax-Hailuo-02", "512P", 6, 320),
    ("generate_video", "MiniMax-Hailuo-02", "512P", 10, 420),
    ("generate_video", "MiniMax-Hailuo-02", "768P", 6, 680),
    ("generate_video", "MiniMax-Hailuo-02", "768P", 10, 1240),
    ("generate_video", "MiniMax-Hailuo-02", "1080P", 6, 1100),
    ("generate_video", "T2V-01-Director", None, None, 980),
    ("generate_video", "I2V-01-Director", None, None, 980),
    ("generate_video", "S2V-01", None, None, 1420),
    ("generate_video", "Gen-4 Turbo", None, 5, 620),
    ("generate_video", "Gen-4 Turbo", None, 10, 1120),
    ("generate_video", "Gen-3a Turbo", None, 5, 620),
    ("generate_video", "Gen-3a Turbo", None, 10, 1120),
    ("generate_video", "Gen-4 Aleph", None, 10, 3120),
    ("generate_image", "FLUX.1 Kontext [pro]", None, None, 110),
    ("generate_image", "FLUX.1 Kontext [max]", None, None, 190),
    ("generate_image", "FLUX 1.1 [pro] Ultra", None, None, 150),
    ("generate_image", "FLUX.1 [dev]", None, None, 90),
    ("generate_image", "FLUX.1 [pro]", None, None, 130),
    ("generate_music", "Music 1.5", None, None, 90),
]
#: Models of a batch generator, in USD.
ASSETS = {
    "fal-ai/minimax/video-01": "0.50",
    "fal-ai/hunyuan-3d/v3.1/rapid/text-to-3d": "0.45",
    "fal-ai/flux/dev": "0.05",
    "fal-ai/flux/schnell": "0.01",
    "beatoven/music-generation": "0.05",
    "fal-ai/aura-sr": "0.02",
}
#: Credits by type and seconds.
TYPES: list[tuple[str, Any, int]] = [
    ("generate_image", None, 5),
    ("generate_video", 5, 25),
    ("generate_video", 8, 50),
    ("generate_video", 10, 50),
    ("generate_audio", 1, 1),
    ("generate_audio", 15, 1),
    ("generate_audio", 16, 2),
    ("generate_audio", 60, 4),
    ("generate_lipsync", 10, 20),
    ("generate_lipsync", 11, 40),
    ("generate_lipsync", 30, 60),
]


def entry(prices: PriceList, action: str) -> PriceEntry:
    (found,) = [entry for entry in prices.entries if entry.action == action]
    return found


def charged(prices: PriceList, action: str, **dimensions: Any) -> Decimal:
    """What a list charges for one call, as a row of the database would."""
    listed = entry(prices, action)
    row = CostRow("", "A", action, listed.flat, NOW, rule=listed.rule and listed.rule.as_json(), free=listed.free)
    return price(
        row, agent_type="A", action=action, quantity=Decimal(1), dimensions=dimensions, at=NOW, record_unpriced=False
    ).amount


def rows_of(prices: PriceList) -> list[dict[str, Any]]:
    return [row for listed in prices.entries if listed.rule is not None for row in listed.rule.document["rows"]]


# -- the lists that ship -------------------------------------------------------------------------------------------


def test_every_list_that_ships_can_be_used() -> None:
    """Each has a title, a source and prices; those in USD say that they need a rate."""
    lists = {prices.name: prices for prices in shipped_lists()}
    assert set(lists) == {
        "agent-actions", "asset-models-usd", "media-starter-usd", "media-types", "studio-models",
        "studio-models-cost-plus",
    }  # fmt: skip
    assert all(prices.title and prices.source and prices.entries for prices in lists.values())
    assert {name for name in lists if needs_rate(name)} == {name for name in lists if name.endswith("-usd")}


def test_the_readme_beside_them_says_what_is_true() -> None:
    """Its example is a price list, and its table names every list."""
    text = (files("agentcredits") / "prices" / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(PriceList.parse(example, name="example").entries) == 2
    assert re.findall(r"^\| ([a-z-]+) \|", text, re.MULTILINE)[1:] == [prices.name for prices in shipped_lists()]


@pytest.mark.parametrize("name", ["studio-models", "studio-models-cost-plus"])
@pytest.mark.parametrize("line", STUDIO, ids=lambda line: "-".join(str(part) for part in line if part))
def test_the_studios_19_lines_are_reproduced_by_table_and_by_formula(name: str, line: tuple[Any, ...]) -> None:
    """The same credits from the table's rows and from the provider's price × 2,000 + the fee of its kind."""
    action, model, resolution, duration, cost = line
    prices = PriceList.shipped(name)
    assert charged(prices, action, model=model, resolution=resolution, duration=duration) == cost


def test_the_studios_lines_are_19_of_which_16_are_distinct() -> None:
    """Counted, so that none is lost."""
    rows = rows_of(PriceList.shipped("studio-models"))
    assert len(STUDIO) == len(rows) == 19
    distinct = {(action, resolution, duration, cost) for action, _, resolution, duration, cost in STUDIO}
    assert len(distinct) == 16


def test_the_six_asset_models_are_in_dollars() -> None:
    """What the list says in USD, and the credits by the rate given."""
    assert len(ASSETS) == 6
    for model, usd in ASSETS.items():
        prices = PriceList.shipped("asset-models-usd", credits_per_usd=100)
        assert charged(prices, "generate_asset", model=model) == Decimal(usd) * 100
        assert entry(prices, "generate_asset").rule.evaluate({"model": model}, NOW).usd == Decimal(usd)  # type: ignore[union-attr]


@pytest.mark.parametrize(("action", "duration", "credits"), TYPES)
def test_the_prices_by_type_and_length_are_reproduced(action: str, duration: Any, credits: int) -> None:
    """Images 5; video 25 or 50; audio 1 per started 15 s; lipsync 20 per started 10 s."""
    assert charged(PriceList.shipped("media-types"), action, duration=duration) == credits


def test_the_eight_agent_actions_are_the_default_prices() -> None:
    """The list that a new database starts with."""
    prices = PriceList.shipped("agent-actions")
    assert [(listed.agent_type, listed.action, f"{listed.flat:f}") for listed in prices.entries] == list(DEFAULT_COSTS)
    assert len(prices.entries) == 8


@pytest.mark.parametrize(
    ("action", "dimensions", "usd"),
    [
        ("generate_image", {"model": "fal-ai/flux/dev", "megapixels": 2}, "0.05"),
        ("generate_image", {"model": "fal-ai/flux-pro/kontext/max"}, "0.08"),
        ("generate_image", {"model": "flux-2-klein-4b", "megapixels": 3}, "0.016"),
        ("generate_image", {"model": "gpt-image-2", "resolution": "1024x1024", "quality": "high"}, "0.211"),
        ("generate_video", {"model": "hailuo-2.3-standard", "resolution": "768P", "duration": 10}, "0.56"),
        ("generate_video", {"model": "gen4.5", "duration": 10}, "1.2"),
        ("generate_video", {"model": "veo-3.1", "resolution": "1080p", "duration": 8}, "3.2"),
        ("generate_video", {"model": "veo-3.1-fast", "resolution": "4k", "duration": 8}, "2.4"),
        ("generate_voice", {"model": "eleven_v3", "characters": 500}, "0.09"),
        ("generate_voice", {"model": "runway-tts", "characters": 51}, "0.02"),
        ("generate_music", {"model": "lyria-3-pro"}, "0.08"),
    ],
)
def test_lines_of_the_starter_list(action: str, dimensions: dict[str, Any], usd: str) -> None:
    """By image, megapixel, second, character and clip, at one credit per dollar."""
    assert charged(PriceList.shipped("media-starter-usd", credits_per_usd=1), action, **dimensions) == Decimal(usd)


def test_the_starter_list_is_dated_line_by_line_and_knows_what_was_retired() -> None:
    """Every line has a source; a retired model is refused by its day."""
    prices = PriceList.shipped("media-starter-usd", credits_per_usd=1)
    assert {listed.as_of for listed in prices.entries} == {date(2026, 10, 1)}
    rows = rows_of(prices)
    assert all(row.get("source") for row in rows)
    with pytest.raises(UnpricedActionError, match="ended on 2026-09-24"):
        charged(prices, "generate_video", model="sora-2", duration=5)


def test_a_list_in_dollars_needs_to_be_told_what_a_dollar_is_worth() -> None:
    """Nothing is sold at a guessed rate; an unknown name is answered with the names there are."""
    with pytest.raises(InvalidInputError, match="say what a dollar is worth") as refusal:
        PriceList.shipped("asset-models-usd")
    assert refusal.value.reason == "rate_missing"
    with pytest.raises(InvalidInputError, match="there are agent-actions"):
        PriceList.shipped("../secrets")


# -- a user's own --------------------------------------------------------------------------------------------------

GOOD = """\
title = "Ours"
source = "contract"
as_of = 2026-05-01

[[price]]
agent_type = "A"
action = "flat"
cost = 1.5

[[price]]
agent_type = "A"
action = "free"
free = true
valid_from = 2027-01-01
valid_until = 2027-02-01T00:00:00Z

[[price]]
agent_type = "*"
action = "table"
source = "page 7"
as_of = 2026-06-01
[price.rule]
kind = "table"
dimensions = ["model"]
rows = [
    { model = "a", usd = 0.1 },
    { model = "b", usd = "0.3" },
]
"""


def test_a_list_is_read_with_its_sources_dates_and_exact_numbers(tmp_path: Path) -> None:
    """An entry's own source and day beat the list's; 0.1 is one tenth."""
    path = tmp_path / "prices.toml"
    path.write_text(GOOD, encoding="utf-8")
    prices = PriceList.read(path, credits_per_usd="10")
    flat, free, table = prices.entries
    assert (prices.name, prices.title, flat.cost, flat.source, flat.as_of) == (
        "prices.toml",
        "Ours",
        Decimal("1.5"),
        "contract",
        date(2026, 5, 1),
    )
    assert (free.free, free.flat) == (True, 0)
    assert (free.valid_from, free.valid_until) == (datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC))
    assert (table.agent_type, table.source, table.as_of) == ("*", "page 7", date(2026, 6, 1))
    rows = [{"model": "a", "usd": "0.1"}, {"model": "b", "usd": "0.3"}]
    assert table.rule == PriceRule.table(["model"], rows, credits_per_usd=10)


@pytest.mark.parametrize(
    ("old", "new", "line", "number", "field", "words"),
    [
        ('title = "Ours"', "title = 5", 1, None, "title", "must be a str"),
        ("as_of = 2026-05-01", 'as_of = "May"', 3, None, "as_of", "must be a date"),
        ('source = "contract"', 'sauce = "contract"', 2, None, "sauce", "no such field"),
        ('action = "flat"', "", 5, 1, "action", "missing"),
        ('agent_type = "A"\naction = "flat"', 'agent_type = ""\naction = "flat"', 6, 1, "agent_type", "empty"),
        ("cost = 1.5", "cost = -1.5", 8, 1, "cost", "not be negative"),
        ("cost = 1.5", "cost = nan", 8, 1, "cost", "finite"),
        ("cost = 1.5", "cost = [1]", 8, 1, "cost", "number"),
        ("cost = 1.5", "cost = 0", 8, 1, "cost", "above zero"),
        ("cost = 1.5", "cots = 1.5", 8, 1, "cots", "no such field"),
        ("cost = 1.5", "", 5, 1, "cost", "either cost or rule"),
        ("free = true", 'free = "yes"', 13, 2, "free", "true or false"),
        ("free = true", "free = true\ncost = 3", 14, 2, "cost", "a free action costs 0"),
        ("valid_from = 2027-01-01", "valid_from = 2027-01-01T00:00:00", 14, 2, "valid_from", "no time zone"),
        ("valid_from = 2027-01-01", 'valid_from = "soon"', 14, 2, "valid_from", "datetime"),
        ("as_of = 2026-06-01", 'as_of = "June"', 21, 3, "as_of", "must be a date"),
        ('kind = "table"', 'kind = "tabel"', 23, 3, "rule.kind", "one of flat"),
        ('dimensions = ["model"]', 'dimensions = ["mo del"]', 24, 3, "rule.dimensions[0]", "name a dimension"),
        ("usd = 0.1", "usd = -0.1", 26, 3, "rule.rows[0].usd", "not be negative"),
        ('usd = "0.3"', 'usd = "x"', 27, 3, "rule.rows[1].usd", "decimal number"),
        ('usd = "0.3"', 'prise = "0.3"', 27, 3, "rule.rows[1]", "exactly one of"),
        ('model = "b"', 'model = "A"', 27, 3, "rule.rows[1]", "never reached"),
    ],
)
def test_a_slip_is_told_with_file_line_entry_and_field(
    old: str, new: str, line: int, number: int | None, field: str, words: str
) -> None:
    """In the sentence and, for programs, beside it."""
    assert old in GOOD
    with pytest.raises(InvalidInputError) as caught:
        PriceList.parse(GOOD.replace(old, new, 1), name="prices.toml", credits_per_usd=10)
    error = caught.value
    assert words in error.message
    assert error.context == {"file": "prices.toml", "line": line, "entry": number, "field": field}
    assert error.message.startswith(f"prices.toml, line {line}{f', price {number}' if number else ''}, {field}: ")
    assert error.reason == "bad_price_list"


def test_a_slip_in_rows_that_are_sections_is_found_too() -> None:
    """TOML has two spellings for a list of tables."""
    text = (
        '[[price]]\nagent_type = "A"\naction = "b"\n[price.rule]\nkind = "table"\ndimensions = ["m"]\n'
        '[[price.rule.rows]]\nm = "a"\ncredits = 1\n[[price.rule.rows]]\nm = "b"\ncredits = "one"\n'
    )
    with pytest.raises(InvalidInputError) as caught:
        PriceList.parse(text, name="p")
    assert (caught.value.context["line"], caught.value.context["field"]) == (12, "rule.rows[1].credits")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[[price]\n", "is no TOML"),
        (b"a = 1\na = 2\n", "is no TOML"),
        (b"", "no [[price]] entries"),
        (b"price = 5\n", "no [[price]] entries"),
        (b"price = [1]\n", "must be a table"),
        (b"\xff\xfe", "no UTF-8"),
        (b"# " + b"x" * (8 * 1024 * 1024), "larger than"),
    ],
    ids=lambda part: str(part)[:20],
)
def test_a_file_that_is_no_price_list_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """With the file's name, and the line where the parser knows it."""
    path = tmp_path / "prices.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"prices\.toml") as caught:
        PriceList.read(path)
    assert words in caught.value.message
    assert "line" in caught.value.context or content.startswith((b"\xff", b"# "))


def test_a_missing_file_is_told() -> None:
    """And so is a folder."""
    for path in ("/nonexistent/prices.toml", "/"):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            PriceList.read(path)
