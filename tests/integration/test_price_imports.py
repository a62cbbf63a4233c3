"""Price lists in the database: compared, imported whole or not at all, twice as once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from agentcredits import (
    CreditService,
    InvalidInputError,
    PriceEntry,
    PriceList,
    PriceRule,
    StoreError,
    SyncCreditService,
)
from agentcredits.settings import Settings
from agentcredits.testing import FakeClock
from tests.integration.price_book import charge, priced, rows, sql


@pytest.fixture
def service(database_url: str) -> Iterator[SyncCreditService]:
    """A service that reads every price anew, and an account with credits."""
    with priced(database_url, 100_000) as made:
        yield made


def statuses(changes: Any) -> dict[str, str]:
    return {f"{change.agent_type}.{change.action}": change.status for change in changes}


def test_a_list_is_imported_once_and_twice_changes_nothing(service: SyncCreditService, database_url: str) -> None:
    """The second run writes no row; the comparison says the same before and after."""
    entries = PriceList.shipped("studio-models").entries
    before = rows(database_url)
    compared = statuses(service.diff_costs(entries))
    assert rows(database_url) == before
    assert {name: status for name, status in compared.items() if status != "only_in_database"} == {
        "VideoAgent.generate_video": "changed",
        "ImageAgent.generate_image": "new",
        "MusicAgent.generate_music": "new",
    }
    assert sum(status == "only_in_database" for status in compared.values()) == 7
    changes = service.import_costs(entries)
    assert [change.status for change in changes] == ["changed", "new", "new"]
    assert changes[0].before is not None
    assert changes[0].before.cost == 10
    assert changes[0].after == service.get_cost("VideoAgent", "generate_video")
    assert charge(service, model="MiniMax-Hailuo-02", resolution="1080P", duration=6) == 1100
    imported = rows(database_url)
    assert set(statuses(service.import_costs(entries)).values()) == {"same"}
    assert rows(database_url) == imported


@pytest.mark.parametrize("name", ["studio-models", "studio-models-cost-plus", "media-types", "agent-actions"])
def test_the_lists_that_ship_charge_what_they_say(service: SyncCreditService, name: str) -> None:
    """From the file through the database to the ledger."""
    service.import_costs(PriceList.shipped(name).entries)
    places: dict[str, tuple[dict[str, Any], int]] = {
        "studio-models": ({"model": "S2V-01"}, 1420),
        "studio-models-cost-plus": ({"model": "Gen-4 Aleph", "duration": 10}, 3120),
        "media-types": ({"duration": 8}, 50),
        "agent-actions": ({}, 10),
    }
    dimensions, credits_ = places[name]
    assert charge(service, **dimensions) == credits_


def test_what_differs_is_told(service: SyncCreditService) -> None:
    """Rows of a table, source and day; an operator's broken row is mended by an import."""
    service.import_costs([PriceEntry("A", "b", PriceRule.table(["m"], [{"m": "a", "credits": 1}]))])
    newer = PriceEntry(
        "A", "b", PriceRule.table(["m"], [{"m": "a", "credits": 2}]), source="contract", as_of=date(2026, 1, 2)
    )
    (change,) = service.import_costs([newer])
    assert change.details == ("m=a: 1 credits → 2 credits", "source: none → contract", "as_of: none → 2026-01-02")
    assert [row.as_of for row in service.list_costs(all_versions=True) if row.agent_type == "A"] == [
        None,
        date(2026, 1, 2),
    ]


def test_an_import_is_all_or_nothing(service: SyncCreditService, database_url: str) -> None:
    """The database refuses the last price: the first ones are not there either."""
    before = rows(database_url)
    if "postgresql" in database_url:
        sql(database_url, "ALTER TABLE agent_action_costs ADD CONSTRAINT no_last CHECK (action <> 'last')")
    else:
        sql(
            database_url,
            "CREATE TRIGGER no_last BEFORE INSERT ON agent_action_costs WHEN NEW.action = 'last'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
    with pytest.raises(StoreError):
        service.import_costs([PriceEntry("VideoAgent", "generate_video", 1), PriceEntry("A", "last", 1)])
    assert rows(database_url) == before
    with pytest.raises(InvalidInputError, match=r"A\.first twice"):
        service.import_costs([PriceEntry("A", "first", 1), PriceEntry("A", "first", 2)])
    assert rows(database_url) == before


def test_prices_are_checked_before_any_is_written() -> None:
    """An entry that cannot be used cannot be made."""
    for wrong in (
        {"agent_type": ""},
        {"action": "a\x00"},
        {"cost": -1},
        {"cost": 0},
        {"cost": 1, "free": True},
        {"cost": {"kind": "flat"}},
        {"source": ""},
        {"as_of": "2026-01-01"},
        {"as_of": datetime(2026, 1, 1, tzinfo=UTC)},
    ):
        with pytest.raises(InvalidInputError):
            PriceEntry(**{"agent_type": "A", "action": "b", "cost": 1, **wrong})  # type: ignore[arg-type]


def test_planned_and_past_prices_of_a_list(database_url: str, clock: FakeClock) -> None:
    """A price for later is written once; one that is over is told and not written; a sale lies over the base price."""
    with SyncCreditService(database_url, clock=clock, settings=Settings(price_cache_seconds=0)) as service:
        day = timedelta(days=1)
        entries = [
            PriceEntry("A", "later", 2, valid_from=clock.now() + day),
            PriceEntry("A", "over", 2, valid_until=clock.now() - day),
            PriceEntry("A", "sale", 2, valid_until=clock.now() + day),
        ]
        service.set_cost("A", "sale", 5)
        clock.advance(timedelta(hours=1))
        assert [change.status for change in service.import_costs(entries)] == ["new", "over", "changed"]
        written = rows(database_url)
        assert [change.status for change in service.import_costs(entries)] == ["same", "over", "same"]
        assert rows(database_url) == written
        assert service.get_cost("A", "sale").cost == 2
        clock.advance(day)
        assert (service.get_cost("A", "sale").cost, service.get_cost("A", "later").cost) == (5, 2)


def test_an_organizations_own_list_leaves_the_defaults_alone(service: SyncCreditService) -> None:
    """It is compared with the organization's own prices only."""
    entries = PriceList.shipped("agent-actions").entries
    assert set(statuses(service.diff_costs(entries)).values()) == {"same"}
    assert set(statuses(service.import_costs(entries, organization_id="globex")).values()) == {"new"}
    assert set(statuses(service.diff_costs(entries, organization_id="globex")).values()) == {"same"}
    assert len([row for row in service.list_costs("globex") if row.organization_id]) == 8
    assert len(service.list_costs()) == 8


def test_two_imports_at_once_write_each_price_once(database_url: str) -> None:
    """The second waits and finds everything the same."""
    entries = PriceList.shipped("studio-models").entries
    found: list[Any] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        with SyncCreditService(database_url) as service:
            barrier.wait()
            found.append(statuses(service.import_costs(entries)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sum(set(statuses_.values()) == {"same"} for statuses_ in found) == 3
    assert len(rows(database_url)) == 8 + 3


async def test_the_coroutine_face_does_the_same(aservice: CreditService) -> None:
    """Importing, comparing, explaining."""
    entries = PriceList.shipped("media-types").entries
    assert "new" in statuses(await aservice.diff_costs(entries)).values()
    assert "new" in statuses(await aservice.import_costs(entries)).values()
    found = await aservice.explain_cost("LipsyncAgent", "generate_lipsync", dimensions={"duration": 11})
    assert found.amount == 40
