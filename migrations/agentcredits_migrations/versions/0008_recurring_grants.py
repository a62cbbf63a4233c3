"""Grants that come again, that are restricted to actions, and that know what they cost; usage by category.

Usage by category is filled from the ledger rows that are there. Nothing is imported from ``agentcredits``.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None

_TIME = sa.DateTime(timezone=True)
_SCOPE = sa.String(255)
_ID = sa.String(64)
_WORD = sa.String(32)
# SQLite's NUMERIC is a binary float: exact text there.
_EXACT = sa.Numeric(20, 6).with_variant(sa.Text(), "sqlite")
_CATEGORIES = ("paid", "promotional", "plan", "adjustment")


def upgrade() -> None:
    op.add_column("credit_accounts", sa.Column("next_refill_at", _TIME))
    op.add_column(
        "credit_accounts", sa.Column("has_restricted", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    for name, kind in (
        ("only_for", sa.Text()),
        ("unit_cost", _EXACT),
        ("currency", _WORD),
        ("recurring_id", _ID),
        ("period_start", _TIME),
        ("rolled_from", _ID),
    ):
        op.add_column("credit_grants", sa.Column(name, kind))
    for name, columns, condition in (
        ("uq_credit_grants_period", ["organization_id", "recurring_id", "period_start"], "period_start IS NOT NULL"),
        ("uq_credit_grants_rolled_from", ["organization_id", "rolled_from"], "rolled_from IS NOT NULL"),
    ):
        op.create_index(
            name,
            "credit_grants",
            columns,
            unique=True,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )
    op.create_table(
        "recurring_grants",
        sa.Column("organization_id", _SCOPE, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("status", _WORD, nullable=False),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.Column("category", _WORD, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("window_text", sa.String(128), nullable=False),
        sa.Column("starts_at", _TIME, nullable=False),
        sa.Column("next_at", _TIME, nullable=False),
        sa.Column("last_start", _TIME),
        sa.Column("ends_at", _TIME),
        sa.Column("expires_after", _WORD, nullable=False),
        sa.Column("rollover_minimum_micros", sa.BigInteger()),
        sa.Column("rollover_maximum_micros", sa.BigInteger()),
        sa.Column("rollover_expires_after", _WORD),
        sa.Column("only_for", sa.Text()),
        sa.Column("unit_cost", _EXACT),
        sa.Column("currency", _WORD),
        sa.Column("source", _SCOPE),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("cancelled_at", _TIME),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_recurring_grants")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["credit_accounts.organization_id"],
            name=op.f("fk_recurring_grants_credit_accounts"),
        ),
        sa.CheckConstraint("status IN ('active', 'ended', 'cancelled')", name=op.f("ck_recurring_grants_status")),
        sa.CheckConstraint(
            "category IN ('paid', 'promotional', 'plan', 'adjustment')", name=op.f("ck_recurring_grants_category")
        ),
        sa.CheckConstraint("amount_micros > 0", name=op.f("ck_recurring_grants_amount")),
        sa.CheckConstraint(
            "next_at >= starts_at AND (last_start IS NULL OR next_at > last_start)",
            name=op.f("ck_recurring_grants_progress"),
        ),
    )
    for name in _CATEGORIES:
        op.add_column(
            "usage_rollups", sa.Column(f"{name}_micros", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    _fill_usage()


def downgrade() -> None:
    for name in reversed(_CATEGORIES):
        op.drop_column("usage_rollups", f"{name}_micros")
    op.drop_table("recurring_grants")
    for name in ("uq_credit_grants_rolled_from", "uq_credit_grants_period"):
        op.drop_index(name, table_name="credit_grants")
    for name in ("rolled_from", "period_start", "recurring_id", "currency", "unit_cost", "only_for"):
        op.drop_column("credit_grants", name)
    for name in ("has_restricted", "next_refill_at"):
        op.drop_column("credit_accounts", name)


def _fill_usage() -> None:
    # Fixed words of this file only (S608).
    names = ("agent_type", "action", "department_id", "project_id", "user_id")
    grouped = [f"COALESCE({'d' if name == 'user_id' else 't'}.{name}, '')" for name in names]
    if op.get_context().dialect.name == "postgresql":
        day = "TO_CHAR(t.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
    else:
        day = "DATE(t.created_at)"
    net = "CASE WHEN t.type = 'debit' THEN a.amount_micros ELSE -a.amount_micros END"
    sums = ", ".join(
        f"SUM(CASE WHEN g.category = '{name}' THEN {net} ELSE 0 END) AS {name}_micros" for name in _CATEGORIES
    )
    columns = ", ".join(f"{term} AS {name}" for term, name in zip(grouped, names, strict=True))
    same = " AND ".join(f"usage_rollups.{name} = s.{name}" for name in ("organization_id", "day", *names))
    op.execute(
        sa.text(
            f"UPDATE usage_rollups SET {', '.join(f'{name}_micros = s.{name}_micros' for name in _CATEGORIES)}"  # noqa: S608
            f" FROM (SELECT t.organization_id AS organization_id, {day} AS day, {columns}, {sums}"
            " FROM credit_transactions t"
            " JOIN credit_transaction_allocations a"
            " ON a.organization_id = t.organization_id AND a.transaction_id = t.id"
            " JOIN credit_grants g ON g.organization_id = a.organization_id AND g.id = a.grant_id"
            " LEFT JOIN credit_transaction_details d"
            " ON d.organization_id = t.organization_id AND d.transaction_id = t.id"
            " WHERE t.type IN ('debit', 'refund')"
            f" GROUP BY t.organization_id, {day}, {', '.join(grouped)}) AS s WHERE {same}"
        )
    )
