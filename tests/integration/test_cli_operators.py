"""The command line of operators: corrections, reservations, what mode "observe" let pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from agentcredits import Settings, SyncCreditService
from tests.integration.cli_calls import Call, charge, refused

# -- corrections -------------------------------------------------------------------------------------------------


def test_adjust_gives_and_takes(on: Call, acme: SyncCreditService) -> None:
    """A sign makes the difference; the reason stays in the ledger."""
    assert on("adjust", "acme", 5, "--reason", "goodwill").out.splitlines() == [
        "Gave 5 credits to acme (seq 2).",
        "It has 1,005 credits available.",
    ]
    taken = on("adjust", "acme", "-0.5", "--reason", "granted twice", "--json").data
    assert (taken["type"], taken["amount"], taken["reason"]) == ("adjust", Decimal("-0.5"), "granted twice")
    assert acme.get_balance("acme").available == Decimal("1004.5")


def test_adjust_with_the_same_key_is_booked_once(on: Call, acme: SyncCreditService) -> None:
    """Said on the screen; another amount under the key is refused."""
    on("adjust", "acme", -5, "--reason", "x", "--key", "t7")
    assert "nothing new was booked" in on("adjust", "acme", -5, "--reason", "x", "--key", "t7").out
    assert "was used before" in refused(on("adjust", "acme", -6, "--reason", "x", "--key", "t7"))
    assert acme.get_balance("acme").available == 995


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-1000.000001", "--reason", "x"), 3),
        (("0", "--reason", "x"), 2),
        (("nan", "--reason", "x"), 2),
        (("5",), 2),
        (("5", "--reason", ""), 2),
        (("5", "--raeson", "x"), 2),
    ],
)
def test_an_adjustment_that_cannot_be_changes_nothing(
    on: Call, acme: SyncCreditService, words: tuple[str, ...], code: int
) -> None:
    """Too much to take is exit code 3; anything malformed, or without a reason, is 2."""
    answer = on("adjust", "acme", *words)
    assert (answer.code, answer.out) == (code, "")
    assert acme.get_balance("acme").available == 1000
    assert len(acme.list_transactions("acme")) == 1


def test_refund_names_the_charge_by_seq_or_id(on: Call, acme: SyncCreditService) -> None:
    """A part, then the rest; never more than the charge."""
    place = charge(acme, 10, agent_type="VideoAgent", action="generate_video")
    assert on("refund", "acme", 2, "2.5", "--reason", "blurred").out.splitlines() == [
        "Gave 2.5 credits back to acme for VideoAgent.generate_video (seq 3).",
        "It has 992.5 credits available.",
    ]
    assert "7.5 of them can still be refunded" in refused(on("refund", "acme", 2, 8))
    rest = on("refund", "acme", place, "--json").data
    assert (rest["amount"], rest["refund_of"]) == (Decimal("7.5"), place)
    assert acme.get_balance("acme").available == 1000


def test_refund_with_the_same_key_is_given_once(on: Call, acme: SyncCreditService) -> None:
    """A partial refund that is sent twice."""
    charge(acme, 10)
    for _ in range(2):
        answer = on("refund", "acme", 2, 3, "--key", "r")
    assert "nothing new was booked" in answer.out
    assert acme.get_balance("acme").available == 993


@pytest.mark.parametrize("words", [("99",), ("0",), ("1",), ("nonsense",), ("2", "-1"), ("2", "0")])
def test_a_refund_that_cannot_be_changes_nothing(on: Call, acme: SyncCreditService, words: tuple[str, ...]) -> None:
    """No such row, a row that is no charge, an amount that is none."""
    charge(acme, 10)
    refused(on("refund", "acme", *words))
    assert acme.get_balance("acme").available == 990


def test_a_foreign_charge_is_an_unknown_one(on: Call, acme: SyncCreditService) -> None:
    """Another organization's id answers as any id that is not there."""
    place = charge(acme, 10)
    acme.grant_credits("other", 5)
    foreign = on("refund", "other", place, "--json")
    unknown = on("refund", "other", "01990000-0000-7000-8000-000000000000", "--json")
    first, second = (json.loads(answer.err)["error"] for answer in (foreign, unknown))
    assert (first["code"], first["status"]) == (second["code"], second["status"]) == ("transaction_not_found", 404)


def test_grants_are_listed_and_voided_by_their_id(on: Call, acme: SyncCreditService) -> None:
    """What is left goes, what is held stays with its hold; voiding again says so."""
    acme.reserve_credits(organization_id="acme", amount=10)
    (grant,) = on("grants", "list", "acme", "--json").data["items"]
    assert grant["id"] in on("grants", "list", "acme").out
    answer = on("void", "acme", grant["id"], "--reason", "unpaid")
    assert answer.out.splitlines() == [
        "Took 990 credits of the grant back from acme; 10 are still held.",
        "It has 0 credits available.",
    ]
    assert acme.list_transactions("acme").items[0].reason == "unpaid"
    assert "was voided before: nothing was taken" in on("void", "acme", grant["id"], "--reason", "unpaid").out
    assert "no grants to spend from" in on("grants", "list", "acme").out
    assert [one["status"] for one in on("grants", "list", "acme", "--all", "--json").data["items"]] == ["voided"]
    assert "--reason" in refused(on("void", "acme", grant["id"]))
    assert "has no grant" in refused(on("void", "acme", "nonsense", "--reason", "x"))


def test_sweep_books_what_is_due(on: Call, past: Callable[[datetime], SyncCreditService]) -> None:
    """Ended reservations and grants, and the holds whose provider never answered; a second sweep finds nothing."""
    then = past(datetime(2026, 1, 1, tzinfo=UTC))
    for name in ("acme", "beta"):
        then.grant_credits(name, 10)
        then.grant_credits(name, 5, expires_at=datetime(2026, 2, 1, tzinfo=UTC))
        hold = then.reserve_credits(organization_id=name, amount=2)
    then.mark_unknown(hold, "fal", "req-1")
    only = on("sweep", "acme", "--json").data
    assert only == {"accounts": 1, "expired_reservations": 1, "expired_grants": 1, "expired_unknown": []}
    shown = on("sweep").out.splitlines()
    assert shown == [
        "Booked what was due in 1 account: 1 reservation ran out, 1 grant expired.",
        f"No verdict ever came from the provider of reservation {hold.id}.",
    ]
    assert on("sweep").out == "Nothing was due.\n"


# -- reservations ------------------------------------------------------------------------------------------------


def test_reservations_are_listed_by_state(on: Call, acme: SyncCreditService) -> None:
    """Each with its id, amount and what became of it; --state may be given several times."""
    held = acme.reserve_credits(organization_id="acme", amount=7, agent_type="VideoAgent", action="generate_video")
    waits = acme.reserve_credits(organization_id="acme", amount=2)
    acme.mark_unknown(waits, "fal", "req-1")
    done = acme.reserve_credits(organization_id="acme", amount=3)
    done.commit(1)

    def ids(*states: str) -> set[str]:
        words = [word for state in states for word in ("--state", state)]
        return {one["id"] for one in on("reservations", "list", "acme", *words, "--json").data["items"]}

    assert ids("active") == {held.id}
    assert ids("active", "unknown") == {held.id, waits.id}
    assert ids() == {held.id, waits.id, done.id}
    assert len(on("reservations", "list", "acme", "--limit", 2, "--json").data["items"]) == 2
    shown = on("reservations", "list", "acme").out
    for fact in (held.id, "VideoAgent.generate_video", "at fal req-1", "charged 1"):
        assert fact in shown
    assert "has no such reservations" in on("reservations", "list", "acme", "--state", "released").out
    assert "asleep" in refused(on("reservations", "list", "acme", "--state", "asleep"))


def test_a_reservation_is_released_with_a_reason(on: Call, acme: SyncCreditService) -> None:
    """Its credits are back; releasing again is harmless, a charged one is refused."""
    held = acme.reserve_credits(organization_id="acme", amount=7)
    assert "--reason" in refused(on("reservations", "release", "acme", held.id))
    assert on("reservations", "release", "acme", held.id, "--reason", "job lost").out.splitlines() == [
        "Gave 7 held credits back to acme.",
        "It has 1,000 credits available.",
    ]
    record = acme.get_reservation(held.id, organization_id="acme")
    assert (record.state.value, record.reason, record.forced) == ("released", "job lost", True)
    again = on("reservations", "release", "acme", held.id, "--reason", "job lost")
    assert "is released already: nothing changed" in again.out
    done = acme.reserve_credits(organization_id="acme", amount=3)
    done.commit()
    refused(on("reservations", "release", "acme", done.id, "--reason", "x"))
    acme.grant_credits("other", 1)
    assert "other" in refused(on("reservations", "release", "other", held.id, "--reason", "x"))


# -- mode "observe" ----------------------------------------------------------------------------------------------


def test_observe_reports_what_would_have_been_refused(on: Call, database_url: str, acme: SyncCreditService) -> None:
    """Counted by organization, reason, source and action; listed one by one with the sentence."""
    assert on("observe", "report").out == "Nothing would have been refused.\n"
    acme.set_limit("acme", amount=10, window="day", scope="user")
    with SyncCreditService(database_url, settings=Settings(mode="observe")) as watching:
        watching.grant_credits("beta", 1)
        for _ in range(2):
            charge(watching, 2000, agent_type="VideoAgent", action="generate_video")
        charge(watching, 11, user_id="ada")
        watching.consume_credits(organization_id="beta", amount=5)
    report = on("observe", "report", "--json").data
    assert report["count"] == 4
    assert [
        (row["count"], row["required"], row["organization_id"], row["limit_source"]) for row in report["items"]
    ] == [
        (2, 4000, "acme", "balance"),
        (1, 11, "acme", "user"),
        (1, 5, "beta", "balance"),
    ]
    assert on("observe", "report", "beta").out.splitlines()[-1] == "1 call would have been refused."
    assert on("observe", "report", "--until", "2020-01-01", "--json").data == {"items": [], "count": 0}
    listed = on("observe", "list", "acme", "--limit", 1, "--json").data["items"]
    assert [row["required"] for row in listed] == [11]
    shown = on("observe", "list", "--since", "today").out
    assert "generate_video needs 2000" in " ".join(shown.split())
    assert "VideoAgent.generate_video" in on("observe", "report").out
