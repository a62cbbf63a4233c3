"""Runs: pools with a cap, and the carve-outs of runs inside them. Caps that were limits of a run stay limits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

_TIME = sa.DateTime(timezone=True)
_SCOPE = sa.String(255)
_INDEXES = {
    "ix_credit_runs_organization_id_created_at": (["organization_id", "created_at"], None),
    "ix_credit_runs_organization_id_root_run_id": (["organization_id", "root_run_id"], None),
    "ix_credit_runs_parent": (["organization_id", "parent_run_id"], "parent_run_id IS NOT NULL"),
}


def upgrade() -> None:
    op.create_table(
        "credit_runs",
        sa.Column("organization_id", _SCOPE, nullable=False),
        sa.Column("run_id", _SCOPE, nullable=False),
        sa.Column("parent_run_id", _SCOPE),
        sa.Column("root_run_id", _SCOPE, nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("cap_micros", sa.BigInteger()),
        sa.Column("borrows", sa.Boolean(), nullable=False, server_default=sa.false()),
        _counter("spent_micros"),
        _counter("held_micros"),
        _counter("carved_micros"),
        _counter("inner_spent_micros"),
        sa.Column("open_children", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _counter("counts_from_seq"),
        sa.Column("warned", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _counter("warned_micros"),
        sa.Column("ttl_seconds", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("organization_id", "run_id", name=op.f("pk_credit_runs")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["credit_accounts.organization_id"], name=op.f("fk_credit_runs_credit_accounts")
        ),
        sa.CheckConstraint("status IN ('open', 'ended')", name=op.f("ck_credit_runs_status")),
        sa.CheckConstraint("(status = 'ended') = (ended_at IS NOT NULL)", name=op.f("ck_credit_runs_end")),
        sa.CheckConstraint(
            "(parent_run_id IS NULL) = (depth = 1) AND depth >= 1 AND depth <= 32", name=op.f("ck_credit_runs_place")
        ),
        sa.CheckConstraint(
            "spent_micros >= 0 AND held_micros >= 0 AND carved_micros >= 0 AND inner_spent_micros >= 0"
            " AND open_children >= 0 AND cap_micros >= 0 AND ttl_seconds > 0",
            name=op.f("ck_credit_runs_counters"),
        ),
    )
    for name, (columns, where) in _INDEXES.items():
        only = None if where is None else sa.text(where)
        op.create_index(op.f(name), "credit_runs", columns, sqlite_where=only, postgresql_where=only)


def downgrade() -> None:
    for name in reversed(_INDEXES):
        op.drop_index(op.f(name), table_name="credit_runs")
    op.drop_table("credit_runs")


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))
