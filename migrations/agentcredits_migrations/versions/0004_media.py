"""Media generation: breakers of provider accounts, and the manifests of batches."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

_TIME = sa.DateTime(timezone=True)
_SCOPE = sa.String(255)
_ID = sa.String(64)
_WORD = sa.String(32)


def upgrade() -> None:
    op.create_table(
        "media_breakers",
        sa.Column("provider", _SCOPE, nullable=False),
        sa.Column("account", _SCOPE, nullable=False, server_default=sa.text("''")),
        sa.Column("category", _WORD, nullable=False),
        sa.Column("rule", _SCOPE, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("probe_at", _TIME, nullable=False),
        sa.Column("probing_until", _TIME),
        sa.PrimaryKeyConstraint("provider", "account", name=op.f("pk_media_breakers")),
    )
    op.create_table(
        "media_batches",
        sa.Column("organization_id", _SCOPE, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", _SCOPE, nullable=False),
        sa.Column("state", _WORD, nullable=False),
        sa.Column("budget_micros", sa.BigInteger()),
        sa.Column("project_id", _SCOPE),
        sa.Column("department_id", _SCOPE),
        sa.Column("user_id", _SCOPE),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("leased_by", _ID),
        sa.Column("leased_until", _TIME),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_media_batches")),
        sa.CheckConstraint("state IN ('planned', 'running', 'finished')", name=op.f("ck_media_batches_state")),
    )
    op.create_index(
        op.f("ix_media_batches_organization_id_created_at"), "media_batches", ["organization_id", "created_at"]
    )
    op.create_table(
        "media_jobs",
        sa.Column("organization_id", _SCOPE, nullable=False),
        sa.Column("batch_id", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("asset_id", _SCOPE, nullable=False),
        sa.Column("name", _SCOPE, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", _WORD, nullable=False),
        sa.Column("agent_type", _SCOPE, nullable=False),
        sa.Column("action", _SCOPE, nullable=False),
        sa.Column("provider", _SCOPE),
        sa.Column("model", _SCOPE),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("enhanced_prompt", sa.Text()),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("dimensions", sa.Text(), nullable=False),
        sa.Column("estimate_micros", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("charged_micros", sa.BigInteger()),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("reservation_id", _ID),
        sa.Column("provider_reference", _SCOPE),
        sa.Column("result", sa.Text()),
        sa.Column("path", sa.Text()),
        sa.Column("reason", _SCOPE),
        sa.Column("message", sa.Text()),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "batch_id", "number", name=op.f("pk_media_jobs")),
        sa.ForeignKeyConstraint(
            ["organization_id", "batch_id"],
            ["media_batches.organization_id", "media_batches.id"],
            name=op.f("fk_media_jobs_media_batches"),
        ),
        sa.CheckConstraint(
            "state IN ('planned', 'intent', 'called', 'done', 'failed', 'dry_run', 'skipped', 'unknown')",
            name=op.f("ck_media_jobs_state"),
        ),
    )


def downgrade() -> None:
    op.drop_table("media_jobs")
    op.drop_index(op.f("ix_media_batches_organization_id_created_at"), table_name="media_batches")
    op.drop_table("media_batches")
    op.drop_table("media_breakers")
