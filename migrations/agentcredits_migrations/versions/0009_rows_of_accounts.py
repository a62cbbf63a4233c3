"""PostgreSQL: ledger rows and reservations without a foreign key to their account.

Every charge paid for looking the account up again, under whose lock it was written. A trigger on ``credit_accounts``,
which every upgrade puts back with the others, keeps accounts that have rows. Nothing changes on SQLite.
"""

from __future__ import annotations

from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None

_TABLES = ("credit_reservations", "credit_transactions")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for table in _TABLES:
            op.drop_constraint(op.f(f"fk_{table}_credit_accounts"), table, type_="foreignkey")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP TRIGGER IF EXISTS credit_accounts_with_rows ON credit_accounts")
        op.execute("DROP FUNCTION IF EXISTS agentcredits_keep_account()")
        for table in _TABLES:
            op.create_foreign_key(
                op.f(f"fk_{table}_credit_accounts"), table, "credit_accounts", ["organization_id"], ["organization_id"]
            )
