"""Tables of media generation: breakers of provider accounts, and the manifests of batches."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

from agentcredits.store.columns import ID, SCOPE, WORD, UtcDateTime, metadata, micros, one_of

#: The operator's accounts at providers that do not serve now; no row: it is served. Not a tenant table.
media_breakers = Table(
    "media_breakers",
    metadata,
    Column("provider", SCOPE, nullable=False),
    Column("account", SCOPE, nullable=False, server_default=text("''")),
    Column("category", WORD, nullable=False),
    Column("rule", SCOPE, nullable=False),
    Column("message", Text, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    # From when on one call may find out whether the account is served again.
    Column("probe_at", UtcDateTime, nullable=False),
    # Somebody is finding out; until then nobody else does.
    Column("probing_until", UtcDateTime),
    PrimaryKeyConstraint("provider", "account"),
)

media_batches = Table(
    "media_batches",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("id", ID, nullable=False),
    Column("name", SCOPE, nullable=False),
    Column("state", WORD, nullable=False),
    Column("budget_micros", BigInteger),
    Column("project_id", SCOPE),
    Column("department_id", SCOPE),
    Column("user_id", SCOPE),
    # What it was started with, as JSON.
    Column("settings", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    # The process that works on it; another one may from ``leased_until`` on.
    Column("leased_by", ID),
    Column("leased_until", UtcDateTime),
    PrimaryKeyConstraint("organization_id", "id"),
    CheckConstraint(one_of("state", "planned", "running", "finished"), name="state"),
)

Index(None, media_batches.c.organization_id, media_batches.c.created_at)

media_jobs = Table(
    "media_jobs",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("batch_id", ID, nullable=False),
    Column("number", Integer, nullable=False),
    Column("asset_id", SCOPE, nullable=False),
    Column("name", SCOPE, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("state", WORD, nullable=False),
    Column("agent_type", SCOPE, nullable=False),
    Column("action", SCOPE, nullable=False),
    Column("provider", SCOPE),
    Column("model", SCOPE),
    Column("prompt", Text, nullable=False),
    Column("enhanced_prompt", Text),
    Column("parameters", Text, nullable=False),
    Column("dimensions", Text, nullable=False),
    micros("estimate_micros"),
    Column("charged_micros", BigInteger),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("reservation_id", ID),
    Column("provider_reference", SCOPE),
    Column("result", Text),
    Column("path", Text),
    Column("reason", SCOPE),
    Column("message", Text),
    Column("updated_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("organization_id", "batch_id", "number"),
    ForeignKeyConstraint(["organization_id", "batch_id"], [media_batches.c.organization_id, media_batches.c.id]),
    # intent: committed before the provider is called; called: it answered, and the charge may be missing.
    CheckConstraint(
        one_of("state", "planned", "intent", "called", "done", "failed", "dry_run", "skipped", "unknown"),
        name="state",
    ),
)
