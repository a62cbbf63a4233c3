"""What verify finds, and the change of a derived counter that would mend it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Table

#: Findings of one kind and account that a report names; a ledger that is broken throughout must not fill the memory.
MAX_EXAMPLES: Final = 20


@dataclass(frozen=True, slots=True)
class Change:
    """One column of one row of counters: what stands there, and what the ledger says.

    ``row``: the row is not there; it is inserted with these values (``column`` among them).
    """

    table: Table
    key: Mapping[str, str]
    column: str
    before: Any
    after: Any
    row: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. Without ``changes`` no counter is wrong but what counters come from: it cannot be repaired.

    ``blocks``: then the account's counters cannot be trusted to come out right either (all but a wrong balance_after,
    from which nothing is computed).
    """

    check: str
    message: str
    changes: tuple[Change, ...] = ()
    blocks: bool = True


@dataclass(slots=True)
class Findings:
    """Collects findings; at most ``most`` of each check (None: all)."""

    most: int | None = MAX_EXAMPLES
    found: list[Finding] = field(default_factory=list)
    _seen: Counter[str] = field(default_factory=Counter)

    def add(self, findings: Iterable[Finding]) -> None:
        """Take what there is of one source, in its order."""
        for finding in findings:
            self._seen[finding.check] += 1
            if self.most is None or self._seen[finding.check] <= self.most:
                self.found.append(finding)
