"""What one run cost, line by line and by agent, task, tool and language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["charged", "given_back", "dry_run", "denied", "pending"]
By = Literal["agent", "task", "tool", "llm", "action"]
KINDS: tuple[Kind, ...] = ("charged", "given_back", "dry_run", "denied", "pending")


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
        return cast(dict[str, Any], _plain(data))

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
        return table


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return f"{value:f}" if isinstance(value, Decimal) else value
