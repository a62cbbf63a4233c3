"""Tables of limits: as they are set, what was used of them, and when they spoke."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from agentcredits.store.columns import COUNTED, ID, SCOPE, WORD, ExactNumeric, UtcDateTime, metadata, micros, one_of

#: Limits as an operator sets them; ``amount`` is in credits or charges, so that it can be edited with plain SQL.
credit_limits = Table(
    "credit_limits",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("id", ID, nullable=False),
    Column("scope", WORD, nullable=False),
    Column("scope_id", COUNTED, nullable=False, server_default=text("''")),
    Column("unit", WORD, nullable=False, server_default=text("'credits'")),
    Column("window_text", String(128), nullable=False),
    Column("amount", ExactNumeric, nullable=False),
    Column("mode", WORD, nullable=False, server_default=text("'hard'")),
    # Fractions of the amount as JSON: '["0.8"]'.
    Column("warn_at", Text),
    # Charges up to this seq were made before the limit and do not count in it.
    Column("counts_from_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("created_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("organization_id", "id"),
    UniqueConstraint("organization_id", "scope", "scope_id", "unit", "window_text", name="uq_credit_limits_place"),
    ForeignKeyConstraint(["organization_id"], ["credit_accounts.organization_id"]),
    CheckConstraint(
        one_of("scope", "organization", "department", "project", "user", "agent_type", "action", "run"), name="scope"
    ),
    CheckConstraint(one_of("unit", "credits", "count"), name="unit"),
    CheckConstraint(one_of("mode", "hard", "soft"), name="mode"),
    CheckConstraint("CAST(amount AS NUMERIC) >= 0 AND CAST(amount AS NUMERIC) < 1000000000000", name="amount"),
)

#: What was used of a limit: in micro-credits or charges. Apart from the limits, so that an UPDATE of a limit cannot
#: write an old counter back.
credit_limit_usage = Table(
    "credit_limit_usage",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("limit_id", ID, nullable=False),
    Column("scope_id", COUNTED, nullable=False),
    Column("held", BigInteger, nullable=False, server_default=text("0")),
    Column("spent", BigInteger, nullable=False, server_default=text("0")),
    # The window that ``spent`` belongs to; NULL for a lifetime.
    Column("window_start", UtcDateTime),
    Column("window_end", UtcDateTime),
    # The highest threshold recorded in this window, in parts of 10,000, and the limit's amount then.
    Column("warned", Integer, nullable=False, server_default=text("0")),
    Column("warned_amount", BigInteger, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("organization_id", "limit_id", "scope_id"),
    ForeignKeyConstraint(
        ["organization_id", "limit_id"], ["credit_limits.organization_id", "credit_limits.id"], ondelete="CASCADE"
    ),
    CheckConstraint("held >= 0 AND spent >= 0", name="counters"),
)

credit_limit_crossings = Table(
    "credit_limit_crossings",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("id", ID, nullable=False),
    Column("limit_id", ID, nullable=False),
    Column("scope", WORD, nullable=False),
    Column("scope_id", COUNTED, nullable=False),
    Column("unit", WORD, nullable=False),
    Column("window_text", String(128), nullable=False),
    Column("window_start", UtcDateTime),
    Column("threshold", Integer, nullable=False),
    Column("limit_amount", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("transaction_id", ID),
    PrimaryKeyConstraint("organization_id", "id"),
)

Index(None, credit_limit_crossings.c.organization_id, credit_limit_crossings.c.created_at)

#: What mode "observe" let pass.
credit_denials = Table(
    "credit_denials",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("id", ID, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("code", WORD, nullable=False),
    Column("reason", SCOPE, nullable=False),
    Column("limit_source", WORD),
    Column("message", Text, nullable=False),
    micros("required_micros"),
    Column("agent_type", SCOPE),
    Column("action", SCOPE),
    Column("project_id", SCOPE),
    Column("department_id", SCOPE),
    Column("user_id", SCOPE),
    Column("run_id", SCOPE),
    PrimaryKeyConstraint("organization_id", "id"),
)

Index(None, credit_denials.c.organization_id, credit_denials.c.created_at)
