"""Reservations are found by the provider's id of their job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index(
        "ix_credit_reservations_provider",
        "credit_reservations",
        ["provider_reference", "organization_id"],
        sqlite_where=sa.text("provider_reference IS NOT NULL"),
        postgresql_where=sa.text("provider_reference IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_credit_reservations_provider", table_name="credit_reservations")
