"""The day on which a price was known to be right."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("agent_action_costs", sa.Column("as_of", sa.Date()))


def downgrade() -> None:
    op.drop_column("agent_action_costs", "as_of")
