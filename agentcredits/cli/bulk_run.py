"""Booking the lines of a bulk file: many at a time, each once, in the order of the file for each organization."""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, Engine

from agentcredits.amounts import from_micros
from agentcredits.cli.bulk_items import Item, Kind, Made
from agentcredits.cli.bulk_lines import Record
from agentcredits.errors import CreditsError, IdempotencyMismatchError, StoreUnavailableError
from agentcredits.ids import check_text
from agentcredits.service import CreditService
from agentcredits.store import reports

#: Lines in flight: on SQLite they share a transaction, on PostgreSQL those of one organization do.
LINES_AT_ONCE: Final = 200

#: Lines in succession that find the database away before the run stops.
GIVE_UP_AFTER: Final = 20

#: Failed lines that the JSON report holds; the terminal shows every one as it comes.
MAX_PROBLEMS: Final = 1_000

#: Leaves room for ``:`` and a line number in an idempotency key.
MAX_KEY_LENGTH: Final = 240


@dataclass(slots=True)
class Report:
    """What became of the lines so far; amounts are net: what adjustments take back counts as negative."""

    dry_run: bool
    booked: int = 0
    would_book: int = 0
    already_there: int = 0
    failed: int = 0
    booked_micros: int = 0
    would_book_micros: int = 0
    already_there_micros: int = 0
    last_line: int = 0
    stopped: str | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lines(self) -> int:
        """Lines that were looked at."""
        return self.booked + self.would_book + self.already_there + self.failed

    @property
    def good_micros(self) -> int:
        """Micro-credits of all lines that are, or could be, booked."""
        return self.booked_micros + self.would_book_micros + self.already_there_micros

    @property
    def ok(self) -> bool:
        """Whether every line is booked (or could be)."""
        return not self.failed and self.stopped is None

    def fail(self, number: int, error: CreditsError) -> None:
        """Count a failed line."""
        self.failed += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append({"line": number, "code": error.code, "reason": error.reason, "message": error.message})

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        amounts = {
            "booked": self.booked_micros,
            "would_book": self.would_book_micros,
            "already_there": self.already_there_micros,
        }
        return {
            "dry_run": self.dry_run,
            "ok": self.ok,
            "lines": self.lines,
            "booked": self.booked,
            "would_book": self.would_book,
            "already_there": self.already_there,
            "failed": self.failed,
            "credits": from_micros(self.good_micros),
            "credits_micros": self.good_micros,
            **{f"{name}_credits": from_micros(micros) for name, micros in amounts.items()},
            **{f"{name}_micros": micros for name, micros in amounts.items()},
            "last_line": self.last_line,
            "stopped": self.stopped,
            "problems": self.problems,
            "problems_left_out": self.failed - len(self.problems),
        }


class Booked:
    """Which lines a key has booked before, and for whom: 8 bytes for each line, whatever is in it.

    Idempotency keys belong to an organization. Without this a line that now names another organization (because a line
    above it was taken out, perhaps) would be booked a second time.
    """

    BLOCK: Final = 4_096

    def __init__(self) -> None:
        self._blocks: dict[int, array[int]] = {}

    @classmethod
    def read(cls, connection: Connection, kind: str, key: str) -> Booked:
        """From the ledger's idempotency keys; looks at all of them, once."""
        found = cls()
        prefix = f"{key}:"
        for name, organization_id in reports.keys_from(connection, kind, prefix):
            # SQLite finds "K:7" for "k:" too: its prefix stays, and it is no number.
            number = name.removeprefix(prefix)
            if number.isascii() and number.isdigit():
                found.add(int(number), organization_id)
        return found

    def add(self, number: int, organization_id: str) -> None:
        """Note whom a line was booked for."""
        block, place = divmod(number, self.BLOCK)
        if block not in self._blocks:
            self._blocks[block] = array("Q", bytes(8 * self.BLOCK))
        self._blocks[block][place] = _digest(organization_id)

    def knows(self, item: Item) -> bool:
        """Whether the line was booked before.

        Raises:
            IdempotencyMismatchError: for another organization.
        """
        block, place = divmod(item.number, self.BLOCK)
        known = self._blocks[block][place] if block in self._blocks else 0
        if known and known != _digest(item.organization_id):
            raise IdempotencyMismatchError(
                "this line was booked for another organization before under this key: keep booked lines where they"
                " are, mend failed ones in place, and add new ones at the end.",
                reason="other_organization",
            )
        return known != 0


def _digest(organization_id: str) -> int:
    """Eight bytes that stand for an organization; never 0."""
    return int.from_bytes(hashlib.blake2b(organization_id.encode(), digest_size=8).digest()) | 1


class Run:
    """One run through a file.

    Args:
        kind: Of booking.
        key: Line 7 is booked under the idempotency key ``<key>:7``.
        report: Counts.
        tell: Hears of every failed line.
    """

    def __init__(self, kind: Kind, key: str, report: Report, tell: Callable[[int, CreditsError], None]) -> None:
        self._kind = kind
        self._key = check_text(key, name="--key", max_length=MAX_KEY_LENGTH)
        self._report = report
        self._tell = tell
        self._away = 0

    def check(self, engine: Engine, records: Iterable[Record], now: datetime) -> Generator[None]:
        """Check every line and book nothing; yields after each handful."""
        booked = self._read_booked(engine)
        for chunk in _chunks(records):
            for number, found in chunk:
                self._report.last_line = number
                try:
                    item = self._item(number, found)
                    if booked.knows(item):
                        self._count_known(item)
                        continue
                    item.refuse_expired(now)
                except CreditsError as error:
                    self._fail(number, error)
                else:
                    self._report.would_book += 1
                    self._report.would_book_micros += item.amount_micros
            yield

    def book(self, engine: Engine, records: Iterable[Record]) -> Generator[None]:
        """Book every line that can be; yields after each handful, all of which is answered then.

        Lines of one handful are queued in the order of the file, and the ledger keeps that order for each
        organization.
        """
        booked = self._read_booked(engine)
        with asyncio.Runner() as runner:
            service = CreditService(engine)
            try:
                # The file is read outside the loop, where an interrupt ends a read that waits (for a pipe).
                for chunk in _chunks(records):
                    runner.run(self._book_chunk(service, booked, chunk))
                    yield
                    if self._report.stopped is not None:
                        return
            finally:
                runner.run(service.aclose())

    def _read_booked(self, engine: Engine) -> Booked:
        with engine.connect() as connection:
            return Booked.read(connection, self._kind.name, self._key)

    async def _book_chunk(self, service: CreditService, booked: Booked, chunk: list[Record]) -> None:
        answers: list[tuple[int, Item | None, asyncio.Task[Made] | CreditsError]] = []
        for number, found in chunk:
            try:
                item = self._item(number, found)
                booked.knows(item)
            except CreditsError as error:
                answers.append((number, None, error))
            else:
                task = asyncio.create_task(self._kind.book(service, item, f"{self._key}:{number}"))
                answers.append((number, item, task))
        tasks = [answer for _, _, answer in answers if isinstance(answer, asyncio.Task)]
        interrupted = not await _wait(tasks)
        for number, asked, answer in answers:
            self._take(number, asked, answer)
        if interrupted:
            raise asyncio.CancelledError

    def _take(self, number: int, item: Item | None, answer: asyncio.Task[Made] | CreditsError) -> None:
        """Count one answered line."""
        self._report.last_line = number
        try:
            if isinstance(answer, CreditsError):
                raise answer
            record = answer.result()
        except CreditsError as error:
            self._away = self._away + 1 if isinstance(error, StoreUnavailableError) else 0
            self._fail(number, error)
            if self._away >= GIVE_UP_AFTER:
                self._report.stopped = error.message
            return
        self._away = 0
        assert item is not None  # noqa: S101  # it was booked
        if record.replayed:
            self._count_known(item)
        else:
            self._report.booked += 1
            self._report.booked_micros += item.amount_micros

    def _item(self, number: int, found: Any) -> Item:
        if isinstance(found, CreditsError):
            raise found
        return self._kind.check(number, found)

    def _count_known(self, item: Item) -> None:
        self._report.already_there += 1
        self._report.already_there_micros += item.amount_micros

    def _fail(self, number: int, error: CreditsError) -> None:
        self._report.fail(number, error)
        self._tell(number, error)


async def _wait(tasks: list[asyncio.Task[Made]]) -> bool:
    """Wait until all are answered, also when an interrupt comes; False when one came.

    What is queued is booked whatever the caller does: it had better be counted.
    """
    if not tasks:
        return True
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        with suppress(asyncio.CancelledError):
            await asyncio.wait(tasks)
        return False
    return True


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, LINES_AT_ONCE)):
        yield chunk
