"""A version that no release has, and the program that migrates to it: ``python -m tests.proof.next_version``.

Its revision keeps totals of each account and agent type, filled from the ledger that is there, and adds a column with
a check to the ledger. On PostgreSQL it does so while others charge: the long part only reads; what was charged
meanwhile is added under a lock that lasts for moments, with the change of the table. On SQLite it rebuilds the table.
All is one transaction: whoever is killed in it has changed nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from alembic import command

from agentcredits.store.upgrade import migration_transaction
from tests.migration.databases import HEAD, configuration, engine_for

REVISION = '''"""Totals of accounts and agent types, and a channel for each ledger row."""

import sys

import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "HEAD"

SUMS = """
    SELECT organization_id, COALESCE(agent_type, ''), MAX(seq), SUM(amount_micros)
    FROM credit_transactions GROUP BY organization_id, COALESCE(agent_type, '')
"""
#: The rows that were written after their account was summed up, found by the key (organization_id, seq).
NEWER_SUMS = """
    SELECT t.organization_id, COALESCE(t.agent_type, ''), MAX(t.seq), SUM(t.amount_micros)
    FROM (SELECT a.organization_id, a.last_seq, COALESCE(MAX(n.through_seq), 0) AS through_seq
          FROM credit_accounts a LEFT JOIN next_totals n ON n.organization_id = a.organization_id
          GROUP BY a.organization_id, a.last_seq) known
    CROSS JOIN LATERAL (SELECT * FROM credit_transactions r
                        WHERE r.organization_id = known.organization_id AND r.seq > known.through_seq OFFSET 0) t
    WHERE known.last_seq > known.through_seq
    GROUP BY t.organization_id, COALESCE(t.agent_type, '')
"""
#: What the totals have to be, from the accounts' counters: a sum over the ledger would take too long under the lock.
TRUTH = """
    CREATE TABLE next_truth AS
    SELECT SUM(granted_micros - spent_micros - expired_micros - voided_micros) AS total_micros FROM credit_accounts
"""


def say(place):
    """Tell the test where the migration is; it goes on when told to."""
    print(place, flush=True)
    sys.stdin.readline()


def upgrade():
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "next_totals",
        sa.Column("organization_id", sa.String(255), primary_key=True),
        sa.Column("agent_type", sa.String(255), primary_key=True),
        sa.Column("through_seq", sa.BigInteger(), nullable=False),
        sa.Column("total_micros", sa.BigInteger(), nullable=False),
    )
    say("filling")
    op.execute("INSERT INTO next_totals" + SUMS)
    say("filled")
    if postgresql and CATCHES_UP:
        op.execute("LOCK TABLE credit_transactions IN ACCESS EXCLUSIVE MODE")
        op.execute(
            "INSERT INTO next_totals" + NEWER_SUMS + " ON CONFLICT (organization_id, agent_type)"
            " DO UPDATE SET through_seq = excluded.through_seq,"
            " total_micros = next_totals.total_micros + excluded.total_micros"
        )
    if postgresql:
        op.execute("ALTER TABLE credit_transactions ADD COLUMN channel VARCHAR(32)")
        op.execute("ALTER TABLE credit_transactions ADD CONSTRAINT ck_channel CHECK (channel <> '') NOT VALID")
    else:
        with op.batch_alter_table("credit_transactions") as batch:
            batch.add_column(sa.Column("channel", sa.String(32)))
            batch.create_check_constraint("ck_channel", "channel <> ''")
    op.execute(TRUTH)
    say("switched")
'''


def write_revision(folder: Path, *, catches_up: bool = True) -> Path:
    """The folder with the revision; without ``catches_up`` it forgets what was charged while it summed up."""
    folder.mkdir()
    text = REVISION.replace("HEAD", HEAD).replace("CATCHES_UP", str(catches_up))
    (folder / "9000_next.py").write_text(text, encoding="utf-8")
    return folder


def migrate(url: str, versions: str) -> None:
    engine = engine_for(url)
    with migration_transaction(engine) as connection:
        command.upgrade(configuration(connection, Path(versions)), "head")
    engine.dispose()


def start(url: str, versions: Path) -> subprocess.Popen[str]:
    """The migration in a process that may be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.proof.next_version", json.dumps([url, str(versions)])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


if __name__ == "__main__":
    migrate(*json.loads(sys.argv[1]))
