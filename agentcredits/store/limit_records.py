"""Between rows of the database, the rules' state, and the public records: limits, observed denials, usage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from agentcredits.amounts import MICROS_PER_CREDIT, to_micros
from agentcredits.errors import CreditsError, InvalidAmountError, InvalidInputError
from agentcredits.model import (
    Denial,
    GrantCategory,
    Limit,
    LimitCrossing,
    LimitMode,
    LimitScope,
    LimitUnit,
    LimitUsage,
)
from agentcredits.rules import rollups
from agentcredits.rules.limits import WHOLE
from agentcredits.rules.refusals import in_unit
from agentcredits.rules.state import Crossed, Denied, LimitState, UsageState
from agentcredits.rules.windows import Window
from agentcredits.store.dialects import LIMIT_COUNTERS, RowLike
from agentcredits.store.records import Values

_usage = attrgetter(*LIMIT_COUNTERS)
usage_window = attrgetter(*(name for name in LIMIT_COUNTERS if name not in ("held", "spent")))


# -- limits ------------------------------------------------------------------------------------------------------


def read_limit(row: RowLike) -> LimitState:
    """A credit_limits row as state; what plain SQL made unreadable is noted, not raised."""
    unit = LimitUnit(row["unit"])
    amount, warn_at, unusable = _read_terms(str(row["amount"]), unit, row["window_text"], row["warn_at"])
    return LimitState(
        id=row["id"],
        scope=LimitScope(row["scope"]),
        scope_id=row["scope_id"],
        unit=unit,
        window_text=row["window_text"],
        amount=amount,
        mode=LimitMode(row["mode"]),
        created_at=row["created_at"],
        counts_from_seq=row["counts_from_seq"],
        warn_at=warn_at,
        unusable=unusable,
    )


@lru_cache(maxsize=4096)
def _read_terms(
    amount: str, unit: LimitUnit, window_text: str, warn_at: str | None
) -> tuple[int, tuple[int, ...], str | None]:
    """Amount, thresholds, and what cannot be read of them; remembered, for every posting reads them again."""
    known = 0
    try:
        known = limit_amount(amount, unit)
        Window.parse(window_text)
        return known, read_warn_at(warn_at), None
    except CreditsError as error:
        return known, (), error.message


def limit_amount(value: Any, unit: LimitUnit) -> int:
    """An amount as typed: micro-credits, or a whole number of charges.

    Raises:
        InvalidAmountError: no amount, or a broken number of charges.
    """
    micros = to_micros(value, allow_zero=True)
    if unit is LimitUnit.CREDITS:
        return micros
    count, rest = divmod(micros, MICROS_PER_CREDIT)
    if rest:
        raise InvalidAmountError("a limit of charges must be a whole number.", context={"parameter": "amount"})
    return count


def read_warn_at(text: str | None) -> tuple[int, ...]:
    """Thresholds as stored: ascending parts of 10,000.

    Raises:
        InvalidInputError: not a JSON list of fractions above 0 and at most 1.
    """
    if not text:
        return ()
    try:
        return warn_parts([Decimal(str(value)) for value in json.loads(text)])
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InvalidInputError(
            f'warn_at must be a list of fractions such as ["0.8"], not {text!r}.', context={"parameter": "warn_at"}
        ) from error


def warn_parts(fractions: Iterable[Decimal]) -> tuple[int, ...]:
    """Fractions as ascending parts of 10,000.

    Raises:
        InvalidInputError: one is not above 0 and at most 1, or finer than a ten-thousandth.
    """
    parts = set()
    for fraction in fractions:
        # Compared first: the product of a huge number would overflow.
        part = fraction * WHOLE if 0 < fraction <= 1 else Decimal(0)
        if not part or part != int(part):
            raise InvalidInputError(
                f"warn_at must hold fractions above 0 and at most 1, with at most 4 decimals, not {fraction}.",
                context={"parameter": "warn_at"},
            )
        parts.add(int(part))
    return tuple(sorted(parts))


def limit_values(organization_id: str, limit: LimitState) -> Values:
    """A whole credit_limits row."""
    return {
        **limit_changes(organization_id, limit),
        "scope": limit.scope.value,
        "scope_id": limit.scope_id,
        "unit": limit.unit.value,
        "window_text": limit.window_text,
        "counts_from_seq": limit.counts_from_seq,
        "created_at": limit.created_at,
    }


def limit_changes(organization_id: str, limit: LimitState) -> Values:
    """What an UPDATE of a limit writes, with its key."""
    return {
        "organization_id": organization_id,
        "id": limit.id,
        "amount": in_unit(limit.unit, limit.amount),
        "mode": limit.mode.value,
        "warn_at": json.dumps([str(part) for part in fractions(limit)]) if limit.warn_at else None,
    }


def fractions(limit: LimitState) -> tuple[Decimal, ...]:
    """The thresholds as fractions of the amount."""
    return tuple(Decimal(part) / WHOLE for part in limit.warn_at)


def read_usage(limit_id: str, scope_id: str, row: RowLike) -> UsageState:
    """A credit_limit_usage row as state."""
    return UsageState(limit_id, scope_id, **{name: row[name] for name in LIMIT_COUNTERS})


def usage_values(organization_id: str, usage: UsageState) -> Values:
    """A whole credit_limit_usage row."""
    return {
        "organization_id": organization_id,
        "limit_id": usage.limit_id,
        "scope_id": usage.scope_id,
        **dict(zip(LIMIT_COUNTERS, _usage(usage), strict=True)),
    }


def usage_changes(organization_id: str, usage: UsageState) -> Values:
    """What an UPDATE of a counter in the same window writes, with its key."""
    return {
        "organization_id": organization_id,
        "limit_id": usage.limit_id,
        "scope_id": usage.scope_id,
        "held": usage.held,
        "spent": usage.spent,
    }


def public_limit(organization_id: str, limit: LimitState, usage: Iterable[UsageState] = ()) -> Limit:
    """The record that callers get; ``usage`` as it stands in the present windows."""
    return Limit(
        organization_id=organization_id,
        id=limit.id,
        scope=limit.scope,
        scope_id=limit.scope_id,
        unit=limit.unit,
        window=limit.window_text,
        amount=in_unit(limit.unit, limit.amount),
        mode=limit.mode,
        warn_at=fractions(limit),
        created_at=limit.created_at,
        usage=tuple(
            LimitUsage(
                scope_id=counter.scope_id,
                spent=in_unit(limit.unit, counter.spent),
                held=in_unit(limit.unit, counter.held),
                remaining=in_unit(limit.unit, max(0, limit.amount - counter.spent - counter.held)),
                window_start=counter.window_start,
                resets_at=counter.window_end,
            )
            for counter in usage
        ),
    )


def crossing_values(organization_id: str, crossed: Crossed) -> Values:
    """A whole credit_limit_crossings row."""
    return {
        "organization_id": organization_id,
        "id": crossed.id,
        "limit_id": crossed.limit_id,
        "scope": crossed.scope.value,
        "scope_id": crossed.scope_id,
        "unit": crossed.unit.value,
        "window_text": crossed.window_text,
        "window_start": crossed.window_start,
        "threshold": crossed.threshold,
        "limit_amount": crossed.limit_amount,
        "spent": crossed.spent,
        "created_at": crossed.at,
        "transaction_id": crossed.transaction_id,
    }


def read_crossing(row: RowLike) -> Crossed:
    """A credit_limit_crossings row as state."""
    return Crossed(
        id=row["id"],
        limit_id=row["limit_id"],
        scope=LimitScope(row["scope"]),
        scope_id=row["scope_id"],
        unit=LimitUnit(row["unit"]),
        window_text=row["window_text"],
        window_start=row["window_start"],
        threshold=row["threshold"],
        limit_amount=row["limit_amount"],
        spent=row["spent"],
        at=row["created_at"],
        transaction_id=row["transaction_id"],
    )


def public_crossing(organization_id: str, crossed: Crossed) -> LimitCrossing:
    """The record that callers get."""
    return LimitCrossing(
        organization_id=organization_id,
        id=crossed.id,
        limit_id=crossed.limit_id,
        scope=crossed.scope,
        scope_id=crossed.scope_id,
        unit=crossed.unit,
        window=crossed.window_text,
        window_start=crossed.window_start,
        threshold=Decimal(crossed.threshold) / WHOLE,
        limit_amount=in_unit(crossed.unit, crossed.limit_amount),
        spent=in_unit(crossed.unit, crossed.spent),
        created_at=crossed.at,
        transaction_id=crossed.transaction_id,
    )


# -- mode "observe" ----------------------------------------------------------------------------------------------


def public_denial(organization_id: str, denied: Denied) -> Denial:
    """The record that callers get, and (its fields) a whole credit_denials row."""
    error, scopes = denied.error, denied.activity.scopes
    return Denial(
        organization_id=organization_id,
        id=denied.id,
        created_at=denied.at,
        code=error.code,
        reason=error.reason,
        limit_source=error.limit_source,
        message=error.message,
        required_micros=denied.required_micros,
        agent_type=denied.activity.agent_type,
        action=denied.activity.action,
        project_id=scopes.project_id,
        department_id=scopes.department_id,
        user_id=scopes.user_id,
        run_id=scopes.run_id,
    )


_DENIAL = tuple(entry.name for entry in fields(Denial))


def denial_values(organization_id: str, denied: Denied) -> Values:
    """A whole credit_denials row."""
    public = public_denial(organization_id, denied)
    return {name: getattr(public, name) for name in _DENIAL}


def read_denial(row: RowLike) -> Denial:
    """A credit_denials row as the record that callers get."""
    return Denial(**{name: row[name] for name in _DENIAL})


# -- usage -------------------------------------------------------------------------------------------------------

#: Where the totals keep what each category of grants bore.
NET_COLUMNS: Final = {category: f"{category.value}_micros" for category in GrantCategory}

#: What a posting adds to in a line that is there.
ROLLUP_SUMS: Final = ("charges", "charged_micros", "refunded_micros", "uncollected_micros", *NET_COLUMNS.values())


def rollup_values(organization_id: str, place: rollups.Place, totals: rollups.Totals) -> Values:
    """What a posting adds to usage_rollups."""
    day, values = place
    return {
        "organization_id": organization_id,
        "day": day,
        "bucket": rollups.bucket(values),
        **dict(zip(rollups.GROUPED, values, strict=True)),
        **rollup_sums(totals),
    }


def rollup_rows(
    organization_id: str, sums: Iterable[tuple[rollups.Place, rollups.Totals]]
) -> tuple[list[Values], tuple[str, ...]]:
    """What a posting adds to usage_rollups, and which of ``ROLLUP_SUMS`` are added to by any of it."""
    rows = [rollup_values(organization_id, place, totals) for place, totals in sums]
    adds = {name for row in rows for name, value in row.items() if value}
    adds.add("charges")
    for row in rows:
        for name in ROLLUP_SUMS:
            if name not in adds:
                del row[name]
    return rows, tuple(name for name in ROLLUP_SUMS if name in adds)


def rollup_sums(totals: rollups.Totals) -> dict[str, int]:
    """The columns of ``ROLLUP_SUMS``."""
    sums = dict.fromkeys(ROLLUP_SUMS, 0)
    sums["charges"] = totals.charges
    sums["charged_micros"] = totals.charged_micros
    sums["refunded_micros"] = totals.refunded_micros
    sums["uncollected_micros"] = totals.uncollected_micros
    for category, micros in totals.net_micros.items():
        sums[NET_COLUMNS[category]] = micros
    return sums
