"""What a posting reads on PostgreSQL, as psycopg takes it: compiled once, sent by ``libpq``."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Select, and_, any_, bindparam, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg as psycopg_dialect
from sqlalchemy.types import String

from agentcredits.store.dialects import ACCOUNT, HAS_LIMITS, HAS_RUNS, LIMIT_COUNTERS
from agentcredits.store.limit_tables import credit_limits
from agentcredits.store.tables import credit_accounts, credit_grants, credit_reservations, idempotency_keys

#: For our own transaction. What a posting reads and changes it finds by an index; PostgreSQL would read a small table
#: as a whole, and go on so with the plan that it has made while the table grows, until it is analyzed.
_SETTINGS: Final = (
    select(
        *(
            func.set_config(literal_column(f"'{name}'"), value, literal_column("true")).label(name)
            for name, value in (("lock_timeout", bindparam("timeout")), ("enable_seqscan", literal_column("'off'")))
        )
    )
    .cte("settings")
    .prefix_with("MATERIALIZED")
)
_ONE: Final = select(literal_column("1").label("one")).subquery("one")

ACCOUNT_LOCKED: Final = ACCOUNT.with_for_update(key_share=True)
ACCOUNT_LOCKED_IN_TIME: Final = (
    select(credit_accounts)
    .select_from(credit_accounts.join(_SETTINGS, and_(*(setting.is_not(None) for setting in _SETTINGS.c))))
    .where(credit_accounts.c.organization_id == bindparam("organization"))
    .with_for_update(key_share=True, of=credit_accounts)
)
OPEN_GRANTS_AND_CLOCK: Final = select(
    func.clock_timestamp().label("read_at"),
    HAS_LIMITS.label("has_limits"),
    HAS_RUNS.label("has_runs"),
    credit_grants,
).select_from(
    _ONE.outerjoin(
        credit_grants, and_(credit_grants.c.organization_id == bindparam("organization"), credit_grants.c.is_open)
    )
)
_HOLDS: Final = select(credit_reservations).where(
    credit_reservations.c.organization_id == bindparam("organization"),
    credit_reservations.c.id == any_(bindparam("holds", type_=ARRAY(String))),
)


def _text(statement: Select[Any]) -> str:
    return str(statement.compile(dialect=psycopg_dialect()))  # type: ignore[no-untyped-call]


LOCK: Final = _text(ACCOUNT_LOCKED_IN_TIME)
LOADS: Final = _text(OPEN_GRANTS_AND_CLOCK)
HOLDS: Final = _text(_HOLDS)
#: Each is looked up by itself: PostgreSQL would read a whole table that it has no statistics of, and a plan that it has
#: made stays while the table grows.
KEYS: Final = f"""
SELECT k.* FROM unnest(%(kinds)s::text[], %(keys)s::text[]) AS named(kind, key)
CROSS JOIN LATERAL (
  SELECT {", ".join(column.name for column in idempotency_keys.c)} FROM idempotency_keys
  WHERE organization_id = %(organization)s AND kind = named.kind AND key = named.key OFFSET 0
) AS k
"""  # noqa: S608 - names of declared columns

_NAMED: Final = (
    "SELECT scope, scope_id FROM unnest(%(scopes)s::text[], %(scope_ids)s::text[]) AS named(scope, scope_id)"
)
#: As ``rules.limits.places_of_record`` has it.
_OF_HOLDS: Final = """
SELECT place.scope, place.scope_id
FROM (
  SELECT DISTINCT department_id, project_id, user_id, agent_type, action, run_id FROM credit_reservations
  WHERE organization_id = %(organization)s AND id = ANY(%(holds)s::text[])
) AS held CROSS JOIN LATERAL (
  VALUES ('department', held.department_id), ('project', held.project_id), ('user', held.user_id),
  ('agent_type', held.agent_type), ('action', held.agent_type || '.' || held.action), ('run', held.run_id)
) AS place(scope, scope_id)
WHERE place.scope_id IS NOT NULL
"""


def _limits(places: str) -> str:
    """The limits over places, those for each included, with their counters of those places."""
    table = ", ".join(f"l.{column.name}" for column in credit_limits.c)
    counters = ", ".join(f"u.{name}" for name in LIMIT_COUNTERS)
    return f"""
WITH places AS MATERIALIZED ({places})
SELECT {table}, u.scope_id AS counted_id, {counters}
FROM credit_limits AS l
LEFT JOIN credit_limit_usage AS u ON u.organization_id = l.organization_id AND u.limit_id = l.id
  AND u.scope_id IN (SELECT scope_id FROM places)
WHERE l.organization_id = %(organization)s
  AND (l.scope_id = '' OR (l.scope, l.scope_id) IN (SELECT scope, scope_id FROM places))
"""  # noqa: S608 - names of declared columns


LIMITS: Final = _limits(_NAMED)
LIMITS_OF_HOLDS: Final = _limits(f"{_NAMED} UNION {_OF_HOLDS}")
