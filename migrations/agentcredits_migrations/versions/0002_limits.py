"""Limits with their counters and crossings, observed denials, and usage by day.

Usage is filled from the ledger rows that are there. Nothing is imported from ``agentcredits``.
"""

from __future__ import annotations

import hashlib
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_TIME = sa.DateTime(timezone=True)
# SQLite's NUMERIC is a binary float: exact text there.
_EXACT = sa.Numeric(20, 6).with_variant(sa.Text(), "sqlite")
_GROUPED = ("agent_type", "action", "department_id", "project_id", "user_id")


def upgrade() -> None:
    op.add_column("credit_reservations", sa.Column("limits", sa.Text()))
    op.add_column("credit_reservations", sa.Column("observed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "credit_limits",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(32), nullable=False),
        sa.Column("scope_id", sa.String(511), nullable=False, server_default=sa.text("''")),
        sa.Column("unit", sa.String(32), nullable=False, server_default=sa.text("'credits'")),
        sa.Column("window_text", sa.String(128), nullable=False),
        sa.Column("amount", _EXACT, nullable=False),
        sa.Column("mode", sa.String(32), nullable=False, server_default=sa.text("'hard'")),
        sa.Column("warn_at", sa.Text()),
        sa.Column("counts_from_seq", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_credit_limits")),
        sa.UniqueConstraint(
            "organization_id",
            "scope",
            "scope_id",
            "unit",
            "window_text",
            name=op.f("uq_credit_limits_place"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["credit_accounts.organization_id"],
            name=op.f("fk_credit_limits_credit_accounts"),
        ),
        sa.CheckConstraint(
            "scope IN ('organization', 'department', 'project', 'user', 'agent_type', 'action', 'run')",
            name=op.f("ck_credit_limits_scope"),
        ),
        sa.CheckConstraint("unit IN ('credits', 'count')", name=op.f("ck_credit_limits_unit")),
        sa.CheckConstraint("mode IN ('hard', 'soft')", name=op.f("ck_credit_limits_mode")),
        sa.CheckConstraint(
            "CAST(amount AS NUMERIC) >= 0 AND CAST(amount AS NUMERIC) < 1000000000000",
            name=op.f("ck_credit_limits_amount"),
        ),
    )
    op.create_table(
        "credit_limit_usage",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("limit_id", sa.String(64), nullable=False),
        sa.Column("scope_id", sa.String(511), nullable=False),
        _counter("held"),
        _counter("spent"),
        sa.Column("window_start", _TIME),
        sa.Column("window_end", _TIME),
        sa.Column("warned", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _counter("warned_amount"),
        sa.PrimaryKeyConstraint("organization_id", "limit_id", "scope_id", name=op.f("pk_credit_limit_usage")),
        sa.ForeignKeyConstraint(
            ["organization_id", "limit_id"],
            ["credit_limits.organization_id", "credit_limits.id"],
            name=op.f("fk_credit_limit_usage_credit_limits"),
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("held >= 0 AND spent >= 0", name=op.f("ck_credit_limit_usage_counters")),
    )
    op.create_table(
        "credit_limit_crossings",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("limit_id", sa.String(64), nullable=False),
        sa.Column("scope", sa.String(32), nullable=False),
        sa.Column("scope_id", sa.String(511), nullable=False),
        sa.Column("unit", sa.String(32), nullable=False),
        sa.Column("window_text", sa.String(128), nullable=False),
        sa.Column("window_start", _TIME),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("limit_amount", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("transaction_id", sa.String(64)),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_credit_limit_crossings")),
    )
    op.create_table(
        "credit_denials",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("reason", sa.String(255), nullable=False),
        sa.Column("limit_source", sa.String(32)),
        sa.Column("message", sa.Text(), nullable=False),
        _counter("required_micros"),
        sa.Column("agent_type", sa.String(255)),
        sa.Column("action", sa.String(255)),
        sa.Column("project_id", sa.String(255)),
        sa.Column("department_id", sa.String(255)),
        sa.Column("user_id", sa.String(255)),
        sa.Column("run_id", sa.String(255)),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_credit_denials")),
    )
    for table in ("credit_limit_crossings", "credit_denials"):
        op.create_index(f"ix_{table}_organization_id_created_at", table, ["organization_id", "created_at"])
    op.create_table(
        "usage_rollups",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("bucket", sa.String(32), nullable=False),
        *(sa.Column(name, sa.String(255), nullable=False) for name in _GROUPED),
        sa.Column("charges", sa.BigInteger(), nullable=False),
        _counter("charged_micros"),
        _counter("refunded_micros"),
        _counter("uncollected_micros"),
        sa.PrimaryKeyConstraint("organization_id", "day", "bucket", name=op.f("pk_usage_rollups")),
    )
    _fill_usage()


def downgrade() -> None:
    op.drop_table("usage_rollups")
    op.drop_table("credit_denials")
    op.drop_table("credit_limit_crossings")
    op.drop_table("credit_limit_usage")
    op.drop_table("credit_limits")
    op.drop_column("credit_reservations", "observed")
    op.drop_column("credit_reservations", "limits")


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))


_SUMS = """
SUM(CASE WHEN t.type = 'debit' THEN 1 ELSE 0 END),
SUM(CASE WHEN t.type = 'debit' THEN -t.amount_micros ELSE 0 END),
SUM(CASE WHEN t.type = 'refund' THEN t.amount_micros ELSE 0 END),
SUM(t.uncollected_micros)
FROM credit_transactions t LEFT JOIN credit_transaction_details d
ON d.organization_id = t.organization_id AND d.transaction_id = t.id
WHERE t.type IN ('debit', 'refund')
"""


def _fill_usage() -> None:
    """PostgreSQL hashes by itself; SQLite cannot, and a script for SQLite is for a database that is empty anyway."""
    # Fixed words of this file only (S608).
    grouped = [f"COALESCE({'d' if name == 'user_id' else 't'}.{name}, '')" for name in _GROUPED]
    if op.get_context().dialect.name == "postgresql":
        day = "TO_CHAR(t.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        key = " || ".join(f"CHAR_LENGTH({term}) || chr(58) || {term}" for term in grouped)
        op.execute(
            sa.text(
                f"INSERT INTO usage_rollups SELECT t.organization_id, {day}, MD5({key}), {', '.join(grouped)}, {_SUMS}"
                f" GROUP BY t.organization_id, {day}, {', '.join(grouped)}"
            )
        )
    elif not op.get_context().as_sql:
        connection = op.get_bind()
        place = ", ".join(["t.organization_id", "DATE(t.created_at)", *grouped])
        rows = connection.execute(sa.text(f"SELECT {place}, {_SUMS} GROUP BY {place}"))
        insert = sa.text(f"INSERT INTO usage_rollups VALUES ({', '.join(f':v{n}' for n in range(12))})")  # noqa: S608
        for organization_id, day, *rest in rows.fetchall():
            values = (organization_id, day, _bucket(rest[:5]), *rest)
            connection.execute(insert, {f"v{n}": value for n, value in enumerate(values)})


def _bucket(words: list[Any]) -> str:
    text = "".join(f"{len(word)}:{word}" for word in words)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
