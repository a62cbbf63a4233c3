"""Overdraft lines, frozen and closed accounts, reservations released by force."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

_STATUS = "status IN ('open', 'frozen', 'closed')"


def upgrade() -> None:
    # SQLite adds a CHECK only together with its column.
    op.add_column("credit_accounts", _micros("overdraft_micros", "credit_accounts_overdraft", "overdraft_micros >= 0"))
    op.add_column("credit_accounts", _micros("overdrawn_micros", "credit_accounts_overdrawn", "overdrawn_micros >= 0"))
    op.add_column(
        "credit_accounts",
        sa.Column(
            "status",
            sa.String(32),
            _check("credit_accounts_status", "status IN ('open', 'frozen', 'closed')"),
            nullable=False,
            server_default=sa.text("'open'"),
        ),
    )
    op.add_column("credit_accounts", sa.Column("status_reason", sa.Text()))
    op.add_column("credit_accounts", sa.Column("status_by", sa.String(255)))
    op.add_column("credit_accounts", sa.Column("status_at", sa.DateTime(timezone=True)))
    op.add_column(
        "credit_grants",
        _micros("repaid_micros", "credit_grants_repaid", "repaid_micros >= 0 AND repaid_micros <= spent_micros"),
    )
    op.add_column("credit_reservations", sa.Column("forced", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_index(
        op.f("ix_credit_grants_repaid"),
        "credit_grants",
        ["organization_id", "id"],
        sqlite_where=sa.text("repaid_micros > 0"),
        postgresql_where=sa.text("repaid_micros > 0"),
    )


def _micros(name: str, check: str, condition: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), _check(check, condition), nullable=False, server_default=sa.text("0"))


def _check(name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{name}"))


def downgrade() -> None:
    op.drop_index(op.f("ix_credit_grants_repaid"), table_name="credit_grants")
    for table, columns in (
        ("credit_reservations", ("forced",)),
        ("credit_grants", ("repaid_micros",)),
        (
            "credit_accounts",
            ("status_at", "status_by", "status_reason", "status", "overdrawn_micros", "overdraft_micros"),
        ),
    ):
        for column in columns:
            op.drop_column(table, column)
