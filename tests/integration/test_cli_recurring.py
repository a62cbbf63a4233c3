"""Grants that come again, are restricted or know their cost, on the command line."""

from __future__ import annotations

from pathlib import Path

from agentcredits import SyncCreditService
from tests.integration.cli_calls import Call


def test_a_recurring_grant_is_made_listed_and_cancelled(on: Call, service: SyncCreditService) -> None:
    """Every term reaches the service; the same key makes one; cancelling again says so."""
    words = ["acme", "100", "--every", "week", "--tz", "Europe/Berlin", "--rollover", "--rollover-max", "50"]
    words += [
        "--rollover-min",
        "5",
        "--rollover-expires-after",
        "90d",
        "--only-for",
        "VideoAgent",
        "--category",
        "paid",
    ]
    words += ["--unit-cost", "0.05", "--currency", "EUR", "--source", "contract 7", "--key", "k"]
    made = on("grants", "recurring", "create", *words, "--json").data
    (recurring,) = service.list_recurring_grants("acme")
    assert (made["id"], made["window"]) == (recurring.id, "week Europe/Berlin")
    assert recurring.rollover is not None
    terms = (recurring.rollover.maximum, recurring.rollover.minimum, recurring.rollover.expires_after)
    assert [str(term) for term in terms] == ["50", "5", "90 days, 0:00:00"]
    assert (recurring.only_for, str(recurring.unit_cost), recurring.currency) == (("VideoAgent.*",), "0.05", "EUR")
    assert "used before" in on("grants", "recurring", "create", *words).out
    table = on("grants", "recurring", "list", "acme").out
    assert "up to 50" in table
    assert recurring.id in table
    assert (
        on("grants", "recurring", "cancel", "acme", recurring.id).out == "The recurring grant of acme is cancelled.\n"
    )
    assert "was cancelled before" in on("grants", "recurring", "cancel", "acme", recurring.id).out
    assert "restricted" in on("balance", "acme").out


def test_what_cannot_be_is_one_sentence(on: Call, service: SyncCreditService) -> None:
    """Exit code 2 and nothing made."""
    for words in (["--expires-after", "soon"], ["--tz", "Nowhere"], ["--expires-after", "5d", "--rollover"]):
        answer = on("grants", "recurring", "create", "acme", "1", *words)
        assert (answer.code, answer.out) == (2, "")
    assert on("grants", "recurring", "list", "acme").code == 3


def test_void_unreserved_leaves_what_is_held(on: Call, service: SyncCreditService) -> None:
    """What the hold gives back can be spent; nothing is left to take after it."""
    grant = service.grant_credits("acme", 10)
    hold = service.reserve_credits(organization_id="acme", amount=4)
    words = ["void", "acme", grant.id, "--unreserved", "--reason", "unpaid"]
    assert on(*words).out.startswith("Took 6 credits of the grant back from acme; 4 are still held.")
    assert on(*words).out.startswith("Nothing of the grant of acme is left to take.")
    hold.release()
    assert service.get_balance("acme").available == 4


def test_a_bulk_file_names_actions_and_costs(on: Call, service: SyncCreditService, tmp_path: Path) -> None:
    """CSV has names with spaces between them, JSON lines have lists; a line that cannot be is reported."""
    table = tmp_path / "grants.csv"
    table.write_text(
        "organization_id,amount,only_for,unit_cost,currency\n"
        "acme,1,VideoAgent *.write,0.05,USD\n"
        "acme,2,,,\n"
        "acme,3,*,,\n"
        "acme,4,,0.05,\n"
    )
    answer = on("bulk", "grant", table, "--key", "a", "--json")
    assert answer.counts == (2, 0, 2)
    assert set(answer.failed) == {4, 5}
    lines = tmp_path / "grants.jsonl"
    lines.write_text('{"organization_id": "acme", "amount": 5, "only_for": ["VideoAgent"]}\n')
    assert on("bulk", "grant", lines, "--key", "b", "--json").counts == (1, 0, 0)
    found = {int(grant.amount): (grant.only_for, grant.unit_cost) for grant in service.list_grants("acme")}
    assert {amount: (names, str(cost)) for amount, (names, cost) in found.items()} == {
        1: (("*.write", "VideoAgent.*"), "0.05"),
        2: ((), "None"),
        5: (("VideoAgent.*",), "None"),
    }
