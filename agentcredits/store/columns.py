"""What the tables of the schema are made of: types, names of constraints, and the metadata they belong to."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Dialect, MetaData, Numeric, String, Text, text
from sqlalchemy.types import TypeDecorator, TypeEngine

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

metadata = MetaData(naming_convention=NAMING)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC: TIMESTAMPTZ, and on SQLite (which has no zones) the UTC wall clock as text."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the driver: UTC."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the driver: aware, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ExactNumeric(TypeDecorator[Decimal]):
    """NUMERIC(20, 6); on SQLite exact text, because its NUMERIC is a binary float.

    A value read is a Decimal on PostgreSQL and text on SQLite: whatever an operator typed there reaches
    ``agentcredits.amounts`` unchanged.
    """

    impl = Numeric(20, 6)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """TEXT on SQLite, NUMERIC elsewhere."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(Text())
        return dialect.type_descriptor(Numeric(20, 6))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        """To the driver: plain digits on SQLite."""
        if value is None or dialect.name != "sqlite":
            return value
        return f"{value:f}"


ID: Final = String(64)
SCOPE: Final = String(255)
#: What a limit counts by: a scope id, or ``agent_type.action``.
COUNTED: Final = String(511)
KEY: Final = String(255)
WORD: Final = String(32)


def micros(name: str, *checks: CheckConstraint, default: int | None = 0) -> Column[int]:
    """A column of micro-credits that is never NULL, with checks of its own (SQLite adds those with the column only)."""
    return Column(
        name, BigInteger, *checks, nullable=False, server_default=None if default is None else text(str(default))
    )


def one_of(column: str, *values: str) -> str:
    """The SQL of a check that a column holds one of these words."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"
