"""Prices are read again in time, by one of those who ask: never by all of them at once, never from before a change."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from agentcredits import CreditService, InvalidAmountError
from agentcredits.rules.pricing import CostRow, Price
from agentcredits.service import price_book
from agentcredits.service.price_book import PriceBook
from agentcredits.store import prices

PLACE = ("acme", "WriterAgent", "write")
THEN = datetime(2026, 3, 1, tzinfo=UTC)
ROWS = (CostRow("", "WriterAgent", "write", Decimal(5), THEN),)


class Watch:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The book's clock."""
    watch = Watch()
    monkeypatch.setattr(price_book, "time", watch)
    return watch


def test_from_half_its_age_one_asker_reads_a_price_again(watch: Watch) -> None:
    """The others go on with what is known; were the first one lost, they would read it at its full age."""
    book = PriceBook(1.0)
    book.put(PLACE, ROWS, THEN, watch.seconds, book.generation)
    watch.seconds += 0.49
    assert [book.get(PLACE, None) is None for _ in range(3)] == [False] * 3
    watch.seconds += 0.02
    assert [book.get(PLACE, None) is None for _ in range(3)] == [True, False, False]
    watch.seconds += 0.5
    assert [book.get(PLACE, None) is None for _ in range(3)] == [True] * 3
    book.put(PLACE, ROWS, THEN, watch.seconds, book.generation)
    watch.seconds += 0.6
    assert [book.get(PLACE, None) is None for _ in range(2)] == [True, False]


def test_the_short_way_ends_where_somebody_has_to_read_again(watch: Watch) -> None:
    """Who takes it is never the one who reads again: it answers ``get``'s answer, or leaves it to ``get``."""
    book = PriceBook(1.0)
    assert book.fresh(PLACE, None) is None
    book.put(PLACE, ROWS, THEN, watch.seconds, book.generation)
    watch.seconds += 0.49
    assert book.fresh(PLACE, None) == book.get(PLACE, None)
    watch.seconds += 0.02
    assert [book.fresh(PLACE, None) for _ in range(2)] == [None, None]
    assert [book.get(PLACE, None) is None for _ in range(2)] == [True, False]


def test_the_time_now_is_the_readings_and_what_passed_since(watch: Watch) -> None:
    """Dated prices begin and end between two readings too."""
    book = PriceBook(1.0)
    book.put(PLACE, ROWS, THEN, watch.seconds, book.generation)
    watch.seconds += 0.25
    known = book.get(PLACE, None)
    assert known is not None
    assert known[0] == ROWS
    assert (known[1] - THEN).total_seconds() == 0.25


def test_what_was_read_before_a_price_was_set_is_not_remembered(watch: Watch) -> None:
    """The reading began before the change and came back after it."""
    book = PriceBook(1.0)
    before = book.generation
    book.clear()
    book.put(PLACE, ROWS, THEN, watch.seconds, before)
    assert book.get(PLACE, None) is None


async def test_coroutines_that_ask_at_the_same_time_share_one_reading(
    aservice: CreditService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst on a cold price reads it once, and a cancelled asker takes nobody with him."""
    read = prices.read_candidates
    readings = []

    def counted(*arguments: object) -> object:
        readings.append(arguments)
        return read(*arguments)  # type: ignore[arg-type]

    await aservice.grant_credits("acme", 1_000)
    await aservice.set_cost("WriterAgent", "write", 5)
    monkeypatch.setattr(prices, "read_candidates", counted)
    charges = [
        asyncio.ensure_future(
            aservice.consume_credits(organization_id="acme", agent_type="WriterAgent", action="write")
        )
        for _ in range(64)
    ]
    await asyncio.sleep(0)
    charges[0].cancel()
    answers = await asyncio.gather(*charges, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {str(answer.charged) for answer in answers[1:]} == {"5"}  # type: ignore[union-attr]
    assert len(readings) == 1
    assert (await aservice.get_balance("acme")).available == 1_000 - 63 * 5


async def test_a_price_just_set_is_charged_although_an_older_reading_is_on_its_way(aservice: CreditService) -> None:
    """Only askers of the same generation share a reading."""
    await aservice.grant_credits("acme", 1_000)
    await aservice.set_cost("WriterAgent", "write", 5)
    charged = []
    for cost in range(6, 26):
        before = asyncio.ensure_future(
            aservice.consume_credits(organization_id="acme", agent_type="WriterAgent", action="write")
        )
        await aservice.set_cost("WriterAgent", "write", cost)
        now = await aservice.consume_credits(organization_id="acme", agent_type="WriterAgent", action="write")
        charged.append(now.charged)
        assert (await before).charged in (cost - 1, cost)
    assert charged == list(range(6, 26))


def test_a_price_that_stays_the_same_is_found_out_once(watch: Watch) -> None:
    """As long as the short way answers; what is noted goes with the rows that it came from."""
    book = PriceBook(1.0)
    assert book.steady(PLACE) is None
    book.put(PLACE, ROWS, THEN, watch.seconds, book.generation)
    steady = book.steady(PLACE)
    assert steady == {}
    steady[3] = Price(15_000_000)
    watch.seconds += 0.49
    assert book.steady(PLACE) is steady
    watch.seconds += 0.02
    assert book.steady(PLACE) is None
    book.put(PLACE, ROWS, THEN, watch.seconds, book.generation)
    assert book.steady(PLACE) == {}
    book.clear()
    assert book.steady(PLACE) is None


@pytest.mark.parametrize(
    ("row", "steady"),
    [
        ({"valid_from": THEN + timedelta(seconds=0.3)}, False),
        ({"valid_from": THEN + timedelta(seconds=1)}, False),
        ({"valid_from": THEN + timedelta(seconds=1.001)}, True),
        ({"valid_until": THEN + timedelta(seconds=0.3)}, False),
        ({"valid_until": THEN + timedelta(seconds=2)}, True),
        ({"valid_until": THEN}, True),
        ({"rule": {"kind": "table"}}, False),
        ({"problem": "its times cannot be told"}, False),
    ],
)
def test_a_price_that_may_change_meanwhile_is_found_out_each_time(
    watch: Watch, row: dict[str, object], steady: bool
) -> None:
    """A row that begins or ends, a rule whose lines may, and one that refuses."""
    book = PriceBook(1.0)
    book.put(PLACE, (*ROWS, replace(ROWS[0], **row)), THEN, watch.seconds, book.generation)  # type: ignore[arg-type]
    assert (book.steady(PLACE) is not None) is steady


async def test_prices_that_are_kept_ready_are_those_of_the_table(database_url: str) -> None:
    """Whatever the quantity, and whatever stands for it; a price that is set counts at once."""
    async with CreditService(database_url) as service:
        await service.grant_credits("acme", 100_000)

        async def charge(quantity: object) -> Decimal:
            row = await service.consume_credits(
                organization_id="acme", agent_type="WriterAgent", action="write", quantity=quantity
            )
            return row.amount

        await service.set_cost("WriterAgent", "write", "2.5")
        for quantity, amount in ((1, "2.5"), (3, "7.5"), (Decimal("0.5"), "1.25"), (3, "7.5"), (1, "2.5")):
            assert await charge(quantity) == -Decimal(amount)
        for nonsense in (0, -1, True, "x", 10**30):
            with pytest.raises(InvalidAmountError):
                await charge(nonsense)
        await service.set_cost("WriterAgent", "write", 4)
        assert [await charge(quantity) for quantity in (1, 3)] == [-4, -12]
        async with asyncio.timeout(30):
            assert await asyncio.gather(*(charge(n) for n in range(1, 150))) == [-4 * n for n in range(1, 150)]
