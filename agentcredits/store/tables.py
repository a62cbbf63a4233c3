"""The declared schema: tables, checks, indexes and the triggers that keep the ledger append-only.

``organization_id`` leads every primary key and (but for one) index of the tenant tables, so that the data can be
partitioned by it. Amounts end in ``_micros`` (BIGINT micro-credits), except ``agent_action_costs.cost``, which is in
credits so that an operator can edit it with plain SQL.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)

from agentcredits.rules.state import OPEN_STATES
from agentcredits.store import columns
from agentcredits.store.columns import ID, KEY, SCOPE, WORD, ExactNumeric, UtcDateTime, micros, one_of
from agentcredits.store.limit_tables import credit_denials, credit_limit_crossings, credit_limit_usage, credit_limits
from agentcredits.store.media_tables import media_batches, media_breakers, media_jobs
from agentcredits.store.recurring_tables import recurring_grants

metadata: Final = columns.metadata

#: Those of ``credit_reservations.state`` in which a reservation holds credits.
HOLDING: Final = sorted(state.value for state in OPEN_STATES)

#: Alembic's own bookkeeping, apart from a host application's.
VERSION_TABLE: Final = "agentcredits_alembic_version"

credit_accounts = Table(
    "credit_accounts",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    micros("granted_micros"),
    micros("scheduled_micros"),
    micros("spent_micros"),
    micros("reserved_micros"),
    micros("expired_micros"),
    micros("voided_micros"),
    Column("last_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("next_due_at", UtcDateTime),
    Column("last_posted_at", UtcDateTime, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # How far charges may go below the grants, and how far they have.
    micros("overdraft_micros", CheckConstraint("overdraft_micros >= 0", name="overdraft")),
    micros("overdrawn_micros", CheckConstraint("overdrawn_micros >= 0", name="overdrawn")),
    Column(
        "status",
        WORD,
        CheckConstraint(one_of("status", "open", "frozen", "closed"), name="status"),
        nullable=False,
        server_default=text("'open'"),
    ),
    Column("status_reason", Text),
    Column("status_by", SCOPE),
    Column("status_at", UtcDateTime),
    # Exactly when the next recurring grant comes, and whether any grant was ever restricted: what belongs to either is
    # read only where it is needed.
    Column("next_refill_at", UtcDateTime),
    Column("has_restricted", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("organization_id"),
    CheckConstraint(
        "granted_micros >= 0 AND scheduled_micros >= 0 AND spent_micros >= 0 AND reserved_micros >= 0"
        " AND expired_micros >= 0 AND voided_micros >= 0 AND last_seq >= 0",
        name="counters",
    ),
    CheckConstraint("organization_id <> ''", name="organization"),
)

credit_grants = Table(
    "credit_grants",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("id", ID, nullable=False),
    Column("status", WORD, nullable=False),
    Column("is_open", Boolean, nullable=False, server_default=true()),
    micros("amount_micros", default=None),
    micros("spent_micros"),
    micros("held_micros"),
    micros("expired_micros"),
    micros("voided_micros"),
    Column("category", WORD, nullable=False),
    Column("priority", Integer, nullable=False, server_default=text("50")),
    Column("effective_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("voided_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("source", SCOPE),
    # The part of spent_micros that paid the account's debt.
    micros(
        "repaid_micros",
        CheckConstraint("repaid_micros >= 0 AND repaid_micros <= spent_micros", name="repaid"),
    ),
    # The actions that may use it, as JSON: '["VideoAgent.*"]'; NULL: every action.
    Column("only_for", Text),
    # What one credit of it cost.
    Column("unit_cost", ExactNumeric),
    Column("currency", WORD),
    Column("recurring_id", ID),
    Column("period_start", UtcDateTime),
    Column("rolled_from", ID),
    PrimaryKeyConstraint("organization_id", "id"),
    ForeignKeyConstraint(["organization_id"], ["credit_accounts.organization_id"]),
    CheckConstraint(one_of("status", "scheduled", "active", "expired", "voided"), name="status"),
    CheckConstraint(one_of("category", "paid", "promotional", "plan", "adjustment"), name="category"),
    CheckConstraint(
        "amount_micros > 0 AND spent_micros >= 0 AND held_micros >= 0 AND expired_micros >= 0 AND voided_micros >= 0"
        " AND spent_micros + held_micros + expired_micros + voided_micros <= amount_micros",
        name="counters",
    ),
    CheckConstraint("expires_at IS NULL OR expires_at > effective_at", name="period"),
)
Index(
    "ix_credit_grants_open",
    credit_grants.c.organization_id,
    credit_grants.c.id,
    sqlite_where=credit_grants.c.is_open,
    postgresql_where=credit_grants.c.is_open,
)
Index(
    "ix_credit_grants_repaid",
    credit_grants.c.organization_id,
    credit_grants.c.id,
    sqlite_where=credit_grants.c.repaid_micros > 0,
    postgresql_where=credit_grants.c.repaid_micros > 0,
)

#: Each period of a recurring grant is granted once, and the rest of a grant is carried over once.
Index(
    "uq_credit_grants_period",
    credit_grants.c.organization_id,
    credit_grants.c.recurring_id,
    credit_grants.c.period_start,
    unique=True,
    sqlite_where=text("period_start IS NOT NULL"),
    postgresql_where=text("period_start IS NOT NULL"),
)
Index(
    "uq_credit_grants_rolled_from",
    credit_grants.c.organization_id,
    credit_grants.c.rolled_from,
    unique=True,
    sqlite_where=text("rolled_from IS NOT NULL"),
    postgresql_where=text("rolled_from IS NOT NULL"),
)


def _account_of_row() -> ForeignKeyConstraint:
    """Of the rows that every charge adds. PostgreSQL would look the account up once more for each of them, a quarter of
    the whole write: there a row is only written under the lock of its account, and a trigger keeps accounts that have
    rows (see ``store.triggers``).
    """
    reference = ForeignKeyConstraint(
        ["organization_id"], ["credit_accounts.organization_id"], info={"dialect": "sqlite"}
    )
    return reference.ddl_if(dialect="sqlite")


credit_reservations = Table(
    "credit_reservations",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("id", ID, nullable=False),
    Column("state", WORD, nullable=False),
    micros("amount_micros", default=None),
    Column("allocations", Text, nullable=False),
    Column("pricing", WORD, nullable=False, server_default=text("'priced'")),
    Column("agent_type", SCOPE),
    Column("action", SCOPE),
    Column("quantity", ExactNumeric),
    Column("project_id", SCOPE),
    Column("department_id", SCOPE),
    Column("user_id", SCOPE),
    Column("request_id", SCOPE),
    Column("run_id", SCOPE),
    Column("dimensions", Text),
    Column("metadata", Text),
    Column("idempotency_key", KEY, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("settled_at", UtcDateTime),
    Column("requested_micros", BigInteger),
    micros("charged_micros"),
    micros("uncollected_micros"),
    Column("transaction_id", ID),
    Column("late", Boolean, nullable=False, server_default=false()),
    Column("reason", Text),
    Column("provider", SCOPE),
    Column("provider_reference", SCOPE),
    # The ids of the limits that count the hold, as JSON.
    Column("limits", Text),
    # Mode "observe" let it pass although it would have been refused: it holds and charges nothing.
    Column("observed", Boolean, nullable=False, server_default=false()),
    # An operator gave it back: its work, should it finish after all, is charged late.
    Column("forced", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("organization_id", "id"),
    _account_of_row(),
    CheckConstraint(one_of("state", "active", "unknown", "committed", "released", "expired"), name="state"),
    CheckConstraint(one_of("pricing", "priced", "free", "unpriced"), name="pricing"),
    CheckConstraint("amount_micros >= 0 AND charged_micros >= 0 AND uncollected_micros >= 0", name="amounts"),
)
Index(
    "ix_credit_reservations_open",
    credit_reservations.c.organization_id,
    credit_reservations.c.expires_at,
    sqlite_where=text("state IN ('active', 'unknown')"),
    postgresql_where=text("state IN ('active', 'unknown')"),
)

# A provider's webhook knows its job, not whose it is: the one index that organization_id does not lead.
Index(
    "ix_credit_reservations_provider",
    credit_reservations.c.provider_reference,
    credit_reservations.c.organization_id,
    sqlite_where=text("provider_reference IS NOT NULL"),
    postgresql_where=text("provider_reference IS NOT NULL"),
)

credit_transactions = Table(
    "credit_transactions",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("id", ID, nullable=False),
    Column("type", WORD, nullable=False),
    micros("amount_micros", default=None),
    micros("balance_after_micros", default=None),
    Column("created_at", UtcDateTime, nullable=False),
    Column("agent_type", SCOPE),
    Column("action", SCOPE),
    Column("quantity", ExactNumeric),
    Column("project_id", SCOPE),
    Column("department_id", SCOPE),
    Column("run_id", SCOPE),
    Column("reservation_id", ID),
    Column("grant_id", ID),
    Column("refund_of", ID),
    Column("idempotency_key", KEY),
    micros("uncollected_micros"),
    Column("pricing", WORD, nullable=False, server_default=text("'priced'")),
    Column("late", Boolean, nullable=False, server_default=false()),
    PrimaryKeyConstraint("organization_id", "seq"),
    UniqueConstraint("organization_id", "id"),
    _account_of_row(),
    CheckConstraint(one_of("type", "purchase", "credit", "debit", "refund", "expire", "adjust"), name="type"),
    CheckConstraint(
        "(type = 'debit' AND amount_micros <= 0) OR (type = 'expire' AND amount_micros < 0)"
        " OR (type IN ('purchase', 'credit', 'refund') AND amount_micros > 0) OR type = 'adjust'",
        name="sign",
    ),
    CheckConstraint("uncollected_micros >= 0 AND seq > 0", name="amounts"),
)
Index(
    "uq_credit_transactions_settlement",
    credit_transactions.c.organization_id,
    credit_transactions.c.reservation_id,
    unique=True,
    sqlite_where=text("type = 'debit' AND reservation_id IS NOT NULL"),
    postgresql_where=text("type = 'debit' AND reservation_id IS NOT NULL"),
)
Index(
    "ix_credit_transactions_refund_of",
    credit_transactions.c.organization_id,
    credit_transactions.c.refund_of,
    sqlite_where=text("refund_of IS NOT NULL"),
    postgresql_where=text("refund_of IS NOT NULL"),
)

credit_transaction_allocations = Table(
    "credit_transaction_allocations",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("transaction_id", ID, nullable=False),
    Column("position", Integer, nullable=False),
    Column("grant_id", ID),
    micros("amount_micros", default=None),
    PrimaryKeyConstraint("organization_id", "transaction_id", "position"),
    CheckConstraint("amount_micros > 0", name="amount"),
)

credit_transaction_details = Table(
    "credit_transaction_details",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("transaction_id", ID, nullable=False),
    Column("user_id", SCOPE),
    Column("request_id", SCOPE),
    Column("reason", Text),
    Column("dimensions", Text),
    Column("metadata", Text),
    PrimaryKeyConstraint("organization_id", "transaction_id"),
)

#: The callers' keys. What was generated for a charge or a hold is made of its record's id and has no row here.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("kind", WORD, nullable=False),
    Column("key", KEY, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("result_id", ID, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("organization_id", "kind", "key"),
)

agent_action_costs = Table(
    "agent_action_costs",
    metadata,
    Column("organization_id", SCOPE, nullable=False, server_default=text("''")),
    Column("agent_type", SCOPE, nullable=False),
    Column("action", SCOPE, nullable=False),
    Column("valid_from", UtcDateTime, nullable=False),
    Column("valid_until", UtcDateTime),
    Column("cost", ExactNumeric, nullable=False),
    Column("rule", Text),
    Column("free", Boolean, nullable=False, server_default=false()),
    Column("source", SCOPE),
    Column("created_at", UtcDateTime),
    # The day on which the price was known to be right.
    Column("as_of", Date),
    PrimaryKeyConstraint("organization_id", "agent_type", "action", "valid_from"),
    CheckConstraint("CAST(cost AS NUMERIC) >= 0 AND CAST(cost AS NUMERIC) < 1000000000000", name="cost"),
    CheckConstraint("valid_until IS NULL OR valid_until > valid_from", name="period"),
)

#: Runs that were opened or brought a cap: pools, and the carve-outs of the runs inside them.
credit_runs = Table(
    "credit_runs",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("run_id", SCOPE, nullable=False),
    Column("parent_run_id", SCOPE),
    Column("root_run_id", SCOPE, nullable=False),
    Column("depth", Integer, nullable=False, server_default=text("1")),
    Column("status", WORD, nullable=False),
    # NULL: no bound of its own.
    Column("cap_micros", BigInteger),
    Column("borrows", Boolean, nullable=False, server_default=false()),
    micros("spent_micros"),
    micros("held_micros"),
    # The claims of the runs inside it.
    micros("carved_micros"),
    # What was charged in the runs inside it.
    micros("inner_spent_micros"),
    Column("open_children", Integer, nullable=False, server_default=text("0")),
    # Charges up to this seq were made before the run had a row and do not count in it.
    Column("counts_from_seq", BigInteger, nullable=False, server_default=text("0")),
    # The highest threshold recorded, in parts of 10,000, and the cap then.
    Column("warned", Integer, nullable=False, server_default=text("0")),
    micros("warned_micros"),
    Column("ttl_seconds", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # Of an idle run: while something is held in it, or a run inside it is open, it does not end by time.
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("reason", Text),
    PrimaryKeyConstraint("organization_id", "run_id"),
    ForeignKeyConstraint(["organization_id"], ["credit_accounts.organization_id"]),
    CheckConstraint(one_of("status", "open", "ended"), name="status"),
    CheckConstraint("(status = 'ended') = (ended_at IS NOT NULL)", name="end"),
    CheckConstraint("(parent_run_id IS NULL) = (depth = 1) AND depth >= 1 AND depth <= 32", name="place"),
    CheckConstraint(
        "spent_micros >= 0 AND held_micros >= 0 AND carved_micros >= 0 AND inner_spent_micros >= 0"
        " AND open_children >= 0 AND cap_micros >= 0 AND ttl_seconds > 0",
        name="counters",
    ),
)
Index(None, credit_runs.c.organization_id, credit_runs.c.created_at)
Index(None, credit_runs.c.organization_id, credit_runs.c.root_run_id)
Index(
    "ix_credit_runs_parent",
    credit_runs.c.organization_id,
    credit_runs.c.parent_run_id,
    sqlite_where=credit_runs.c.parent_run_id.is_not(None),
    postgresql_where=credit_runs.c.parent_run_id.is_not(None),
)

#: Totals by UTC day and everything that usage can be grouped by, kept with every charge and refund.
usage_rollups = Table(
    "usage_rollups",
    metadata,
    Column("organization_id", SCOPE, nullable=False),
    Column("day", String(10), nullable=False),
    # A hash of the five columns that follow: together they can be too long for an index.
    Column("bucket", String(32), nullable=False),
    Column("agent_type", SCOPE, nullable=False),
    Column("action", SCOPE, nullable=False),
    Column("department_id", SCOPE, nullable=False),
    Column("project_id", SCOPE, nullable=False),
    Column("user_id", SCOPE, nullable=False),
    Column("charges", BigInteger, nullable=False),
    micros("charged_micros"),
    micros("refunded_micros"),
    micros("uncollected_micros"),
    # Charged less refunded, by the category of the grants.
    micros("paid_micros"),
    micros("promotional_micros"),
    micros("plan_micros"),
    micros("adjustment_micros"),
    PrimaryKeyConstraint("organization_id", "day", "bucket"),
)

MEDIA_TABLES: Final = (media_breakers, media_batches, media_jobs)
LIMIT_TABLES: Final = (credit_limits, credit_limit_usage, credit_limit_crossings, credit_denials)
RECURRING_TABLES: Final = (recurring_grants,)

#: The default prices of the integration guide, inserted once by the first migration and never again.
DEFAULT_COSTS: Final = (
    ("ContentAgent", "generate_content", "1"),
    ("ContentAgent", "generate_instagram_reel", "5"),
    ("VisualPostAgent", "create_visual_post", "2"),
    ("VoiceAgent", "generate_voice", "2"),
    ("VideoAgent", "generate_video", "10"),
    ("ResearchAgent", "research_topic", "1"),
    ("QAAgent", "answer_question", "0.5"),
    ("WorkflowAgent", "execute_workflow", "3"),
)
