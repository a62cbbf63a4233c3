"""What a run cost: everything that is booked in it becomes a line, whoever booked it.

Adapters and programs of your own use it: ``with log.listening(): …``, then ``log.summary()``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast

from agentcredits.errors import CreditsError
from agentcredits.hooks import CreditEvent, add_hook

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["charged", "given_back", "dry_run", "denied", "pending"]
By = Literal["agent", "task", "tool", "llm", "action"]
KINDS: tuple[Kind, ...] = ("charged", "given_back", "dry_run", "denied", "pending")


@dataclass(frozen=True, slots=True)
class Place:
    """In whose hands something is charged; ``usage`` is what a language model counted (tokens, requests)."""

    agent: str | None = None
    task: str | None = None
    tool: str | None = None
    llm: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known of it, for the ledger's row."""
        return {name: value for name, value in asdict(self).items() if value}


_log: ContextVar[RunLog | None] = ContextVar("agentcredits_run_log", default=None)
_place: ContextVar[Place] = ContextVar("agentcredits_place", default=Place())  # noqa: B039  # it is frozen


def current_place() -> Place:
    """Where this thread or task works."""
    return _place.get()


def set_place(place: Place) -> Token[Place]:
    """Work at this place from now on, in this thread or task."""
    return _place.set(place)


@contextmanager
def at_place(**known: Any) -> Iterator[Place]:
    """Know more about where this thread or task works, for the length of a block."""
    token = _place.set(replace(_place.get(), **known))
    try:
        yield _place.get()
    finally:
        _place.reset(token)


@dataclass(frozen=True, slots=True)
class SummaryLine:
    """One thing that was charged, given back, only planned, refused, or done and not booked yet (``pending``)."""

    kind: Kind
    amount: Decimal
    action: str | None = None
    agent: str | None = None
    task: str | None = None
    tool: str | None = None
    llm: str | None = None
    reason: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The lines of a run so far; ``print`` it with rich, or take ``as_dict()`` for JSON."""

    organization_id: str
    run_id: str | None
    lines: tuple[SummaryLine, ...]
    #: The runs inside, in the order in which they began; their lines are among these too.
    children: tuple[RunSummary, ...] = ()

    def total(self, kind: Kind) -> Decimal:
        """Credits of one kind."""
        return sum((line.amount for line in self.lines if line.kind == kind), Decimal(0))

    @property
    def charged(self) -> Decimal:
        """Credits that the run's charges took."""
        return self.total("charged")

    @property
    def given_back(self) -> Decimal:
        """Credits that were held for work that failed."""
        return self.total("given_back")

    def by(self, name: By) -> dict[str, dict[str, Any]]:
        """For each agent, task, tool, language model or action: ``{"calls": 2, "charged": Decimal("7"), …}``."""
        found: dict[str, dict[str, Any]] = {}
        for line in self.lines:
            key = getattr(line, name)
            if key is not None:
                entry = found.setdefault(key, {"calls": 0, **dict.fromkeys(KINDS, Decimal(0))})
                entry["calls"] += 1
                entry[line.kind] += line.amount
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data that ``json.dumps`` takes; amounts are texts."""
        groups: tuple[By, ...] = ("agent", "task", "tool", "llm", "action")
        data: dict[str, Any] = {"organization_id": self.organization_id, "run_id": self.run_id}
        data |= {kind: self.total(kind) for kind in KINDS}
        data |= {f"by_{name}": self.by(name) for name in groups}
        data["lines"] = [asdict(line) for line in self.lines]
        plain = cast(dict[str, Any], _plain(data))
        return plain | {"children": [child.as_dict() for child in self.children]}

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=f"Credits of organization {self.organization_id}")
        for heading in ("agent", "task", "what", "result", "credits"):
            table.add_column(heading, justify="right" if heading == "credits" else "left")
        for line in self.lines:
            what = line.tool or line.llm or line.action or ""
            result = line.kind.replace("_", " ") + (f" ({line.reason})" if line.reason else "")
            table.add_row(line.agent or "", line.task or "", what, result, f"{line.amount:f}")
        table.add_section()
        table.add_row("", "", "", "charged", f"{self.charged:f}")
        for level, child in self._inside():
            table.add_row("", "", f"{'  ' * level}run {child.run_id or ''}".rstrip(), "of it", f"{child.charged:f}")
        return table

    def _inside(self, level: int = 0) -> Iterator[tuple[int, RunSummary]]:
        for child in self.children:
            yield level, child
            yield from child._inside(level + 1)


class RunLog:
    """Writes down what is booked in a run: in the block, and in whatever its context is copied into.

    Args:
        organization_id: Whose run it is.
        run_id: The run's id in the ledger.
        outer: The run around it, whose lines these are too; the one that it listens inside of, when None.
    """

    def __init__(self, organization_id: str, run_id: str | None = None, *, outer: RunLog | None = None) -> None:
        self.organization_id = organization_id
        self.run_id = run_id
        self.outer = outer
        self._lines: list[SummaryLine] = []
        self._children: list[RunLog] = []
        self._denied: Exception | None = None
        if outer is not None:
            outer._children.append(self)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Write down what is booked inside the block."""
        around = _log.get()
        if self.outer is None and around is not self:
            self.outer = around
            if around is not None:
                around._children.append(self)
        token = _log.set(self)
        try:
            yield
        finally:
            _log.reset(token)

    def summary(self) -> RunSummary:
        """What the run cost so far, runs inside it included."""
        children = tuple(child.summary() for child in self._children)
        return RunSummary(self.organization_id, self.run_id, tuple(self._lines), children)

    def record(
        self,
        kind: Kind,
        amount: Decimal,
        *,
        action: str | None = None,
        reason: str | None = None,
        place: Place | None = None,
    ) -> None:
        """Write a line, in the hands of whoever works now or at ``place``."""
        facts = asdict(place or _place.get())
        line = SummaryLine(kind, amount, action=action, reason=reason, **facts)
        log: RunLog | None = self
        while log is not None:
            log._lines.append(line)  # one step for the interpreter: no lock
            log = log.outer

    def refused(self, error: CreditsError, *, action: str | None, place: Place | None = None) -> None:
        """Write a refusal's line of the summary."""
        required = Decimal(error.context.get("required") or 0)
        self.record("denied", required, action=action, reason=error.reason, place=place)

    # -- stopping ----------------------------------------------------------------------------------------------

    def deny(self, error: Exception) -> Exception:
        """Stop the run: from now on :meth:`check` raises this error. The first one stays."""
        if self._denied is None:
            self._denied = self.stopping(error)
        return self._denied

    def stopping(self, error: Exception) -> Exception:
        """The error as one that stops the framework; as it is, unless an adapter knows better."""
        return error

    def check(self) -> None:
        """Refuse whatever comes after a refusal of this run or one around it.

        Frameworks swallow errors of delegated work, so once is not enough.
        """
        log: RunLog | None = self
        while log is not None:
            if log._denied is not None:
                raise log._denied.with_traceback(None)
            log = log.outer


def current_run() -> RunLog | None:
    """The innermost run that listens here, or None."""
    return _log.get()


@add_hook
def _listen(event: CreditEvent) -> None:
    log, record, booked = _log.get(), event.reservation, event.transaction
    if log is None:
        return
    if record is not None and event.name == "settlement_deferred":
        log.record("pending", record.amount, action=record.action)
    elif record is not None and event.name == "settled":
        if record.state == "committed":
            log.record("charged", record.charged, action=record.action)
        else:
            log.record("given_back", record.amount, action=record.action, reason=record.reason)
    elif booked is not None and event.name in ("charged", "refunded"):
        log.record("charged" if event.name == "charged" else "given_back", abs(booked.amount), action=booked.action)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return f"{value:f}" if isinstance(value, Decimal) else value
