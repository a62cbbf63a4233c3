"""The declared schema of grants that come again."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

from agentcredits.store.columns import ID, SCOPE, WORD, ExactNumeric, UtcDateTime, metadata, micros, one_of

#: Grants that come again each period. How long something lasts: 'period', 'never', or seconds.
recurring_grants = Table(
    "recurring_grants",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("id", ID, nullable=False),
    Column("status", WORD, nullable=False),
    micros("amount_micros", default=None),
    Column("category", WORD, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("window_text", String(128), nullable=False),
    Column("starts_at", UtcDateTime, nullable=False),
    # The first refill that is not booked, and the start of the last period that is.
    Column("next_at", UtcDateTime, nullable=False),
    Column("last_start", UtcDateTime),
    Column("ends_at", UtcDateTime),
    Column("expires_after", WORD, nullable=False),
    # NULL: nothing is carried over.
    Column("rollover_minimum_micros", BigInteger),
    Column("rollover_maximum_micros", BigInteger),
    Column("rollover_expires_after", WORD),
    Column("only_for", Text),
    Column("unit_cost", ExactNumeric),
    Column("currency", WORD),
    Column("source", SCOPE),
    Column("created_at", UtcDateTime, nullable=False),
    Column("cancelled_at", UtcDateTime),
    PrimaryKeyConstraint("organization_id", "id"),
    ForeignKeyConstraint(["organization_id"], ["credit_accounts.organization_id"]),
    CheckConstraint(one_of("status", "active", "ended", "cancelled"), name="status"),
    CheckConstraint(one_of("category", "paid", "promotional", "plan", "adjustment"), name="category"),
    CheckConstraint("amount_micros > 0", name="amount"),
    CheckConstraint("next_at >= starts_at AND (last_start IS NULL OR next_at > last_start)", name="progress"),
)
