"""The ledger: accounts, grants, reservations, transactions, keys and prices.

Frozen once released: later changes of the schema are new revisions, so that every database takes the same steps.
Nothing is imported from ``agentcredits`` for the same reason. The triggers come from ``env.py``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

_TIME = sa.DateTime(timezone=True)
# SQLite's NUMERIC is a binary float: exact text there.
_EXACT = sa.Numeric(20, 6).with_variant(sa.Text(), "sqlite")

#: Credits for one action of the agents of the integration guide; an operator's own afterwards.
_DEFAULT_COSTS = (
    ("ContentAgent", "generate_content", "1"),
    ("ContentAgent", "generate_instagram_reel", "5"),
    ("VisualPostAgent", "create_visual_post", "2"),
    ("VoiceAgent", "generate_voice", "2"),
    ("VideoAgent", "generate_video", "10"),
    ("ResearchAgent", "research_topic", "1"),
    ("QAAgent", "answer_question", "0.5"),
    ("WorkflowAgent", "execute_workflow", "3"),
)


def upgrade() -> None:
    op.create_table(
        "agent_action_costs",
        sa.Column("organization_id", sa.String(255), nullable=False, server_default=sa.text("''")),
        sa.Column("agent_type", sa.String(255), nullable=False),
        sa.Column("action", sa.String(255), nullable=False),
        sa.Column("valid_from", _TIME, nullable=False),
        sa.Column("valid_until", _TIME),
        sa.Column("cost", _EXACT, nullable=False),
        sa.Column("rule", sa.Text()),
        sa.Column("free", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("source", sa.String(255)),
        sa.Column("created_at", _TIME),
        sa.PrimaryKeyConstraint(
            "organization_id", "agent_type", "action", "valid_from", name=op.f("pk_agent_action_costs")
        ),
        sa.CheckConstraint(
            "CAST(cost AS NUMERIC) >= 0 AND CAST(cost AS NUMERIC) < 1000000000000",
            name=op.f("ck_agent_action_costs_cost"),
        ),
        sa.CheckConstraint(
            "valid_until IS NULL OR valid_until > valid_from", name=op.f("ck_agent_action_costs_period")
        ),
    )
    op.create_table(
        "credit_accounts",
        sa.Column("organization_id", sa.String(255), nullable=False),
        _counter("granted_micros"),
        _counter("scheduled_micros"),
        _counter("spent_micros"),
        _counter("reserved_micros"),
        _counter("expired_micros"),
        _counter("voided_micros"),
        _counter("last_seq"),
        sa.Column("next_due_at", _TIME),
        sa.Column("last_posted_at", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_credit_accounts")),
        sa.CheckConstraint(
            "granted_micros >= 0 AND scheduled_micros >= 0 AND spent_micros >= 0 AND reserved_micros >= 0"
            " AND expired_micros >= 0 AND voided_micros >= 0 AND last_seq >= 0",
            name=op.f("ck_credit_accounts_counters"),
        ),
        sa.CheckConstraint("organization_id <> ''", name=op.f("ck_credit_accounts_organization")),
    )
    op.create_table(
        "credit_grants",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("is_open", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        _counter("spent_micros"),
        _counter("held_micros"),
        _counter("expired_micros"),
        _counter("voided_micros"),
        sa.Column("category", sa.String(32), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False, server_default=sa.text("50")),
        sa.Column("effective_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("voided_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("source", sa.String(255)),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_credit_grants")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["credit_accounts.organization_id"], name=op.f("fk_credit_grants_credit_accounts")
        ),
        sa.CheckConstraint(
            "category IN ('paid', 'promotional', 'plan', 'adjustment')", name=op.f("ck_credit_grants_category")
        ),
        sa.CheckConstraint(
            "amount_micros > 0 AND spent_micros >= 0 AND held_micros >= 0 AND expired_micros >= 0"
            " AND voided_micros >= 0"
            " AND spent_micros + held_micros + expired_micros + voided_micros <= amount_micros",
            name=op.f("ck_credit_grants_counters"),
        ),
        sa.CheckConstraint("expires_at IS NULL OR expires_at > effective_at", name=op.f("ck_credit_grants_period")),
        sa.CheckConstraint(
            "status IN ('scheduled', 'active', 'expired', 'voided')", name=op.f("ck_credit_grants_status")
        ),
    )
    _partial_index("ix_credit_grants_open", "credit_grants", ["organization_id", "id"], "is_open")
    op.create_table(
        "credit_reservations",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.Column("allocations", sa.Text(), nullable=False),
        sa.Column("pricing", sa.String(32), nullable=False, server_default=sa.text("'priced'")),
        sa.Column("agent_type", sa.String(255)),
        sa.Column("action", sa.String(255)),
        sa.Column("quantity", _EXACT),
        sa.Column("project_id", sa.String(255)),
        sa.Column("department_id", sa.String(255)),
        sa.Column("user_id", sa.String(255)),
        sa.Column("request_id", sa.String(255)),
        sa.Column("run_id", sa.String(255)),
        sa.Column("dimensions", sa.Text()),
        sa.Column("metadata", sa.Text()),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("settled_at", _TIME),
        sa.Column("requested_micros", sa.BigInteger()),
        _counter("charged_micros"),
        _counter("uncollected_micros"),
        sa.Column("transaction_id", sa.String(64)),
        sa.Column("late", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("reason", sa.Text()),
        sa.Column("provider", sa.String(255)),
        sa.Column("provider_reference", sa.String(255)),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_credit_reservations")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["credit_accounts.organization_id"],
            name=op.f("fk_credit_reservations_credit_accounts"),
        ),
        sa.CheckConstraint(
            "amount_micros >= 0 AND charged_micros >= 0 AND uncollected_micros >= 0",
            name=op.f("ck_credit_reservations_amounts"),
        ),
        sa.CheckConstraint("pricing IN ('priced', 'free', 'unpriced')", name=op.f("ck_credit_reservations_pricing")),
        sa.CheckConstraint(
            "state IN ('active', 'unknown', 'committed', 'released', 'expired')",
            name=op.f("ck_credit_reservations_state"),
        ),
    )
    _partial_index(
        "ix_credit_reservations_open",
        "credit_reservations",
        ["organization_id", "expires_at"],
        "state IN ('active', 'unknown')",
    )
    op.create_table(
        "credit_transactions",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.Column("balance_after_micros", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("agent_type", sa.String(255)),
        sa.Column("action", sa.String(255)),
        sa.Column("quantity", _EXACT),
        sa.Column("project_id", sa.String(255)),
        sa.Column("department_id", sa.String(255)),
        sa.Column("run_id", sa.String(255)),
        sa.Column("reservation_id", sa.String(64)),
        sa.Column("grant_id", sa.String(64)),
        sa.Column("refund_of", sa.String(64)),
        sa.Column("idempotency_key", sa.String(255)),
        _counter("uncollected_micros"),
        sa.Column("pricing", sa.String(32), nullable=False, server_default=sa.text("'priced'")),
        sa.Column("late", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("organization_id", "seq", name=op.f("pk_credit_transactions")),
        sa.UniqueConstraint("organization_id", "id", name=op.f("uq_credit_transactions_organization_id_id")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["credit_accounts.organization_id"],
            name=op.f("fk_credit_transactions_credit_accounts"),
        ),
        sa.CheckConstraint("uncollected_micros >= 0 AND seq > 0", name=op.f("ck_credit_transactions_amounts")),
        sa.CheckConstraint(
            "(type = 'debit' AND amount_micros <= 0) OR (type = 'expire' AND amount_micros < 0)"
            " OR (type IN ('purchase', 'credit', 'refund') AND amount_micros > 0) OR type = 'adjust'",
            name=op.f("ck_credit_transactions_sign"),
        ),
        sa.CheckConstraint(
            "type IN ('purchase', 'credit', 'debit', 'refund', 'expire', 'adjust')",
            name=op.f("ck_credit_transactions_type"),
        ),
    )
    _partial_index(
        "ix_credit_transactions_refund_of",
        "credit_transactions",
        ["organization_id", "refund_of"],
        "refund_of IS NOT NULL",
    )
    _partial_index(
        "uq_credit_transactions_settlement",
        "credit_transactions",
        ["organization_id", "reservation_id"],
        "type = 'debit' AND reservation_id IS NOT NULL",
        unique=True,
    )
    op.create_table(
        "credit_transaction_allocations",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("transaction_id", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("grant_id", sa.String(64)),
        sa.Column("amount_micros", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "organization_id", "transaction_id", "position", name=op.f("pk_credit_transaction_allocations")
        ),
        sa.CheckConstraint("amount_micros > 0", name=op.f("ck_credit_transaction_allocations_amount")),
    )
    op.create_table(
        "credit_transaction_details",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("transaction_id", sa.String(64), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("request_id", sa.String(255)),
        sa.Column("reason", sa.Text()),
        sa.Column("dimensions", sa.Text()),
        sa.Column("metadata", sa.Text()),
        sa.PrimaryKeyConstraint("organization_id", "transaction_id", name=op.f("pk_credit_transaction_details")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("organization_id", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("result_id", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "kind", "key", name=op.f("pk_idempotency_keys")),
    )
    _insert_default_costs()


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_table("credit_transaction_details")
    op.drop_table("credit_transaction_allocations")
    op.drop_table("credit_transactions")
    op.drop_table("credit_reservations")
    op.drop_table("credit_grants")
    op.drop_table("credit_accounts")
    op.drop_table("agent_action_costs")
    if op.get_context().dialect.name == "postgresql":
        for name in ("refuse_change", "keep_account"):
            op.execute(f"DROP FUNCTION IF EXISTS agentcredits_{name}()")


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))


def _partial_index(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _insert_default_costs() -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    since = datetime(1970, 1, 1, tzinfo=UTC)
    columns: list[sa.ColumnClause[Any]] = [
        sa.column("organization_id", sa.String()),
        sa.column("agent_type", sa.String()),
        sa.column("action", sa.String()),
        sa.column("valid_from", _TIME),
        sa.column("cost", _EXACT),
        sa.column("free", sa.Boolean()),
        sa.column("source", sa.String()),
    ]
    op.bulk_insert(
        sa.table("agent_action_costs", *columns),
        [
            {
                "organization_id": "",
                "agent_type": agent_type,
                "action": action,
                "valid_from": since.replace(tzinfo=None) if sqlite else since,
                "cost": cost if sqlite else Decimal(cost),
                "free": False,
                "source": "integration guide",
            }
            for agent_type, action, cost in _DEFAULT_COSTS
        ],
    )
