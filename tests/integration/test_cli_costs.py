"""``costs``: explaining a price, whole price lists, comparing, and what a slip in a file looks like."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from agentcredits import SyncCreditService
from tests.integration.cli_calls import Answer, Call


def prices(url: str) -> list[tuple[Any, ...]]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return [
                tuple(row) for row in connection.execute(text("SELECT * FROM agent_action_costs ORDER BY 1, 2, 3, 4"))
            ]
    finally:
        engine.dispose()


def refused(answer: Answer) -> str:
    """The sentence of a command that failed."""
    assert (answer.code, answer.out) == (2, "")
    assert "Traceback" not in answer.err
    return answer.err


OWN = """\
title = "Ours"
source = "contract"

[[price]]
agent_type = "QAAgent"
action = "answer_question"
cost = 2

[[price]]
agent_type = "VideoAgent"
action = "generate_video"
[price.rule]
kind = "table"
dimensions = ["model"]
rows = [
    { model = "turbo", usd = "0.05" },
]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(OWN, encoding="utf-8")
    return path


# -- explain -------------------------------------------------------------------------------------------------------


def test_explain_shows_the_arithmetic(on: Call) -> None:
    """The line of the table, the provider's price, the rate and the fee, and what comes out."""
    on("costs", "seed", "studio-models-cost-plus")
    answer = on(
        "costs", "explain", "VideoAgent", "generate_video", "model=minimax-hailuo-02", "resolution=1080P", "duration=6"
    )
    assert (answer.code, answer.err) == (0, "")
    assert answer.lines == [
        "VideoAgent.generate_video costs 1,100 credits (0.49 USD by the price list).",
        "    line model=MiniMax-Hailuo-02, resolution=1080P, duration=6",
        "    0.49 USD each",
        "    0.49 USD × 2,000 credits per USD + 120 = 1,100 credits",
        "By the price of VideoAgent.generate_video for everybody,"
        " source: studio's model pricing, solved for the provider's price.",
    ]


def test_explain_takes_a_quantity_an_organization_and_json(on: Call) -> None:
    """Its own price first; amounts in JSON are exact numbers beside their micros."""
    on("costs", "set", "VideoAgent", "generate_video", "0.3", "--org", "acme")
    answer = on("costs", "explain", "VideoAgent", "generate_video", "--quantity", "0.333333", "--org", "acme", "--json")
    data = answer.data
    assert (data["amount"], data["amount_micros"], data["quantity"]) == (Decimal("0.1"), 100000, Decimal("0.333333"))
    assert [step["text"] for step in data["steps"]][-1] == "rounded up to the micro-credit: 0.1 credits"
    assert (data["price"]["organization_id"], data["price"]["cost_micros"]) == ("acme", 300000)
    assert (
        on("costs", "explain", "VideoAgent", "generate_video").lines[0] == "VideoAgent.generate_video costs 10 credits."
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("model=nope",), "there is no price for model 'nope': known are MiniMax-Hailuo-02,"),
        ((), "the price depends on the dimension model, which is missing"),
        (("model=MiniMax-Hailuo-02", "resolution=8K", "duration=6"), "no price for resolution '8K': known are 512P"),
        (("model=Gen-4 Turbo", "duration=-5"), "no price for duration '-5': known are 5, 10"),
        (("duration",), "'duration' is no dimension: write NAME=VALUE"),
        (("=5",), "is no dimension"),
        (("model=S2V-01", "--quantity", "-1"), "quantity must be above zero"),
    ],
)
def test_explain_says_what_has_no_price(on: Call, words: tuple[str, ...], sentence: str) -> None:
    """One sentence, and nothing on standard output."""
    on("costs", "seed", "studio-models")
    assert sentence in refused(on("costs", "explain", "VideoAgent", "generate_video", *words))


# -- lists ---------------------------------------------------------------------------------------------------------


def test_seeds_are_listed(on: Call) -> None:
    """Each by its name, with what it holds and whether it is in USD."""
    listed = {row["name"]: row for row in on("costs", "seeds", "--json").data["items"]}
    assert len(listed) == 6
    assert listed["asset-models-usd"]["needs_credits_per_usd"] is True
    assert listed["media-starter-usd"]["as_of"] == "2026-10-01"
    shown = on("costs", "seeds").out
    assert all(name in shown for name in listed)


def test_a_seed_is_set_once(on: Call, database_url: str, service: SyncCreditService) -> None:
    """--dry-run writes nothing, the first run writes, the second finds everything the same."""
    before = prices(database_url)
    assert on("costs", "seed", "studio-models", "--dry-run").lines[-1] == (
        "Not written: 3 prices (2 new, 1 changed); 0 the same, 0 over."
    )
    assert prices(database_url) == before
    answer = on("costs", "seed", "studio-models", "--as-of", "2026-10-31")
    assert answer.lines[-1] == "Written: 3 prices (2 new, 1 changed); 0 the same, 0 over."
    assert "~ VideoAgent.generate_video: table of 13 over model, resolution, duration (changed)" in answer.lines
    written = prices(database_url)
    again = on("costs", "seed", "studio-models", "--as-of", "2026-10-31", "--json").data
    assert [change["status"] for change in again["changes"]] == ["same"] * 3
    assert prices(database_url) == written
    service.grant_credits("acme", 5000)
    row = service.consume_credits(
        organization_id="acme", agent_type="VideoAgent", action="generate_video", dimensions={"model": "S2V-01"}
    )
    assert row.charged == 1420
    assert {price.as_of for price in service.list_costs() if price.rule} != {None}


def test_a_list_in_dollars_needs_a_rate(on: Call, database_url: str) -> None:
    """The sentence names the option; with it the list is set."""
    before = prices(database_url)
    sentence = refused(on("costs", "seed", "asset-models-usd"))
    assert "say what a dollar is worth in credits" in sentence
    assert "--credits-per-usd" in sentence
    assert "must be above zero" in refused(on("costs", "seed", "asset-models-usd", "--credits-per-usd", "0"))
    assert prices(database_url) == before
    on("costs", "seed", "asset-models-usd", "--credits-per-usd", "100")
    answer = on("costs", "explain", "AssetGenerator", "generate_asset", "model=fal-ai/flux/dev")
    assert answer.lines[0] == "AssetGenerator.generate_asset costs 5 credits (0.05 USD by the price list)."


def test_a_file_is_imported_for_an_organization(on: Call, own: Path) -> None:
    """Its source and the day given are kept, and shown by the list."""
    words = ("costs", "import", own, "--credits-per-usd", "200", "--org", "acme", "--as-of", "2026-10-31")
    data = on(*words, "--json").data
    assert [(change["organization_id"], change["status"]) for change in data["changes"]] == [("acme", "new")] * 2
    assert data["changes"][1]["after"]["rule"]["credits_per_usd"] == "200"
    listed = [row for row in on("costs", "list", "--org", "acme", "--json").data["items"] if row["organization_id"]]
    assert [(row["source"], row["as_of"], row["cost_micros"]) for row in listed] == [
        ("contract", "2026-10-31", 2000000),
        ("contract", "2026-10-31", None),
    ]
    shown = on("costs", "list", "--org", "acme").out
    assert "table of 1 over model" in shown
    assert "2026-10-31" in shown


def test_diff_compares_a_file_or_a_list_and_writes_nothing(on: Call, own: Path, database_url: str) -> None:
    """New, changed row by row, the same, and what only the database has."""
    before = prices(database_url)
    answer = on("costs", "diff", "agent-actions")
    assert answer.lines[-1] == "Not written: 0 prices (0 new, 0 changed); 8 the same, 0 over."
    answer = on("costs", "diff", own, "--credits-per-usd", "100")
    assert "~ QAAgent.answer_question: 2 (changed)" in answer.lines
    assert "    0.5 credits → 2 credits" in answer.lines
    assert "! VoiceAgent.generate_voice: 2 (only in database)" in answer.lines
    assert prices(database_url) == before
    on("costs", "import", own, "--credits-per-usd", "100")
    own.write_text(OWN.replace('"0.05"', '"0.06"'), encoding="utf-8")
    changes = {
        change["action"]: change
        for change in on("costs", "diff", own, "--credits-per-usd", 100, "--json").data["changes"]
    }
    assert changes["answer_question"]["status"] == "same"
    assert changes["generate_video"]["details"] == ["model=turbo: 0.05 usd → 0.06 usd"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('usd = "0.05"', 'usd = "-0.05"', "prices.toml, line 16, price 2, rule.rows[0].usd: "),
        ("cost = 2", "cots = 2", "prices.toml, line 7, price 1, cots: there is no such field"),
        ('kind = "table"', "kind = ", "prices.toml is no TOML"),
    ],
)
def test_a_slip_in_a_file_is_told_and_nothing_is_written(
    on: Call, own: Path, database_url: str, old: str, new: str, sentence: str
) -> None:
    """Line and field are named; the good price before it is not set either."""
    before = prices(database_url)
    own.write_text(OWN.replace(old, new), encoding="utf-8")
    for command in ("import", "diff"):
        assert sentence in refused(on("costs", command, own, "--credits-per-usd", "100"))
    assert prices(database_url) == before


def test_wrong_words_are_told(on: Call, own: Path) -> None:
    """A missing file, an unknown list, a day that is none, options that need another."""
    assert "cannot be read" in refused(on("costs", "import", "missing.toml"))
    assert "there are agent-actions" in refused(on("costs", "seed", "nonsense"))
    assert "there are agent-actions" in refused(on("costs", "diff", "nonsense"))
    assert "--as-of May is not a day" in refused(on("costs", "import", own, "--credits-per-usd", "1", "--as-of", "May"))
    assert "go with --litellm" in refused(on("costs", "import", own, "--only", "x/*"))
    assert "--credits-per-usd" in refused(on("costs", "import", own, "--litellm"))
    assert "no plain decimal number" in refused(on("costs", "import", own, "--credits-per-usd", "many"))


def test_a_litellm_map_is_imported_and_what_is_left_out_is_said(on: Call, tmp_path: Path) -> None:
    """By the models chosen; explained by its tokens."""
    path = tmp_path / "map.json"
    chat = {
        "litellm_provider": "openai",
        "mode": "chat",
        "input_cost_per_token": 2.5e-06,
        "output_cost_per_token": 1e-05,
    }
    path.write_text(json.dumps({"gpt-4o": chat, "odd": {**chat, "output_cost_per_token": 7}}), encoding="utf-8")
    answer = on("costs", "import", path, "--litellm", "--credits-per-usd", 1000, "--agent", "Writer")
    assert "+ Writer.llm_call: table of 1 over model (new)" in answer.lines
    assert answer.lines[-1].endswith("USD per token: odd")
    explained = on(
        "costs", "explain", "Writer", "llm_call", "model=openai/gpt-4o", "input_tokens=1200", "output_tokens=300"
    )
    assert explained.lines[0] == "Writer.llm_call costs 6 credits (0.006 USD by the price list)."
    assert "no price that can be used" in refused(
        on("costs", "import", path, "--litellm", "--credits-per-usd", 1000, "--only", "anthropic/*")
    )


# -- list ----------------------------------------------------------------------------------------------------------


def test_a_row_that_cannot_be_used_is_shown_and_hides_no_other(on: Call, database_url: str) -> None:
    """It stands in the table as unreadable, and below it what is to be mended."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE agent_action_costs SET rule = :rule WHERE action = 'generate_video'"),
            {"rule": '{"kind":"flat"}'},
        )
    engine.dispose()
    answer = on("costs", "list")
    assert answer.code == 0
    assert "unreadable" in answer.out
    assert (
        "Mend: VideoAgent.generate_video is refused: the price rule cannot be used: credits: it is missing."
        in answer.out
    )
    items = {row["action"]: row for row in on("costs", "list", "--json").data["items"]}
    assert len(items) == 8
    assert items["generate_video"]["cost"] is None
    assert "credits: it is missing" in items["generate_video"]["problem"]


def test_an_old_price_is_marked(on: Call, service: SyncCreditService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the setting says what is old."""
    service.set_cost("QAAgent", "answer_question", 1, as_of=date(2020, 1, 1))
    sentence = "Check: the price of QAAgent.answer_question is older than 30 days."
    assert sentence not in on("costs", "list").out
    monkeypatch.setenv("AGENTCREDITS_PRICE_MAX_AGE_DAYS", "30")
    assert sentence in on("costs", "list").out
