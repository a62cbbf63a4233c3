"""The triggers: the ledger is append-only, and an account that has rows stays, whoever connects.

Every upgrade puts them back.
"""

from __future__ import annotations

from typing import Final

#: Tables whose rows are never changed or deleted.
APPEND_ONLY: Final = ("credit_transactions", "credit_transaction_allocations")

_REFUSAL: Final = "is append-only: correct it with a new row (refund, adjustment)"

#: The functions of PostgreSQL's triggers.
TRIGGER_FUNCTIONS: Final = ("agentcredits_refuse_change", "agentcredits_keep_account")

#: On PostgreSQL the account's rows in these have no foreign key.
_ROWS_OF_ACCOUNTS: Final = ("credit_transactions", "credit_reservations")


def trigger_statements(dialect_name: str) -> list[str]:
    """SQL that (re)creates the triggers, those of the append-only tables first; safe to run again."""
    statements: list[str] = []
    if dialect_name == "postgresql":
        statements.append(
            "CREATE OR REPLACE FUNCTION agentcredits_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$"
            f" BEGIN RAISE EXCEPTION '% {_REFUSAL}', TG_TABLE_NAME USING ERRCODE = 'restrict_violation'; END $$"
        )
        for table in APPEND_ONLY:
            statements += [
                f"CREATE OR REPLACE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}"
                " FOR EACH ROW EXECUTE FUNCTION agentcredits_refuse_change()",
                f"CREATE OR REPLACE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION agentcredits_refuse_change()",
            ]
        has_rows = " OR ".join(
            f"EXISTS (SELECT FROM {table} r WHERE r.organization_id = OLD.organization_id)"
            for table in _ROWS_OF_ACCOUNTS
        )
        statements += [
            "CREATE OR REPLACE FUNCTION agentcredits_keep_account() RETURNS trigger LANGUAGE plpgsql AS $$"
            f" BEGIN IF {has_rows} THEN RAISE EXCEPTION 'account % has rows in the ledger', OLD.organization_id"
            " USING ERRCODE = 'foreign_key_violation'; END IF; RETURN COALESCE(NEW, OLD); END $$",
            # Only of that column: every charge updates the account.
            "CREATE OR REPLACE TRIGGER credit_accounts_with_rows BEFORE DELETE OR UPDATE OF organization_id"
            " ON credit_accounts FOR EACH ROW EXECUTE FUNCTION agentcredits_keep_account()",
        ]
    else:
        for table in APPEND_ONLY:
            for event in ("UPDATE", "DELETE"):
                name = f"{table}_no_{event.lower()}"
                statements += [
                    f"DROP TRIGGER IF EXISTS {name}",
                    f"CREATE TRIGGER {name} BEFORE {event} ON {table}"
                    f" BEGIN SELECT RAISE(ABORT, '{table} {_REFUSAL}'); END",
                ]
    return statements
