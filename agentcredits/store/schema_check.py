"""Comparing a live schema with the declared one: what ``agentcredits db check`` reports.

Reads catalogues only, so it works with a read-only role and on a stand-by. PostgreSQL stores conditions in words of
its own (casts, parentheses, ``= ANY (ARRAY[…])`` for ``IN``), so both sides are brought to one spelling first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Dialect,
    ForeignKeyConstraint,
    Inspector,
    Table,
    UniqueConstraint,
    inspect,
    text,
)
from sqlalchemy.schema import CreateIndex, DefaultClause

from agentcredits.store import row_security
from agentcredits.store.tables import metadata
from agentcredits.store.tenancy import ACCOUNTS_FUNCTION
from agentcredits.store.triggers import trigger_statements


def check_schema(connection: Connection) -> list[str]:
    """One sentence for each difference between the declared and the live schema; empty when there is none.

    Compares tables, columns (type, nullability, default), keys, indexes, uniques, CHECKs, foreign keys and triggers.
    Where row security was switched on, its policies too. A host application's own tables are not looked at.
    """
    inspector = inspect(connection)
    present = set(inspector.get_table_names())
    problems = []
    for table in metadata.sorted_tables:
        if table.name not in present:
            problems.append(f"table {table.name} is missing")
            continue
        for kind, declared, live in _aspects(table, inspector, connection.dialect):
            problems += [f"table {table.name}: {words}" for words in _differences(kind, declared, live)]
    problems += _differences("trigger", _declared_triggers(connection.dialect.name), _live_triggers(connection))
    if row_security.is_on(connection):
        problems += _differences("policy", _declared_policies(connection), _live_policies(connection))
    return problems


Facts = Mapping[str, str]
"""Name of a thing → everything about it that matters, as text that can be compared and shown."""


def _differences(kind: str, declared: Facts, live: Facts) -> Iterator[str]:
    for name in sorted(declared.keys() | live.keys()):
        if name not in live:
            yield f"{kind} {name} is missing"
        elif name not in declared:
            yield f"{kind} {name} is not declared"
        elif declared[name] != live[name]:
            yield f"{kind} {name} is {live[name]!r}, declared as {declared[name]!r}"


def _aspects(table: Table, inspector: Inspector, dialect: Dialect) -> Iterator[tuple[str, Facts, Facts]]:
    name = table.name
    yield (
        "column",
        {column.name: _declared_column(column, dialect) for column in table.columns},
        {column["name"]: _live_column(column, dialect) for column in inspector.get_columns(name)},
    )
    key = inspector.get_pk_constraint(name)
    yield (
        "primary key",
        {str(table.primary_key.name): _columns(column.name for column in table.primary_key)},
        {str(key["name"]): _columns(key["constrained_columns"])},
    )
    yield (
        "unique constraint",
        {str(item.name): _columns(item.columns.keys()) for item in _constraints(table, UniqueConstraint)},
        {str(item["name"]): _columns(item["column_names"]) for item in inspector.get_unique_constraints(name)},
    )
    yield (
        "CHECK",
        {str(item.name): _canonical(str(item.sqltext)) for item in _constraints(table, CheckConstraint)},
        {str(item["name"]): _canonical(item["sqltext"]) for item in inspector.get_check_constraints(name)},
    )
    yield (
        "foreign key",
        {
            str(item.name): _reference(
                item.column_keys, item.referred_table.name, [e.column.name for e in item.elements]
            )
            for item in _constraints(table, ForeignKeyConstraint)
            if item.info.get("dialect", dialect.name) == dialect.name
        },
        {
            str(item["name"]): _reference(item["constrained_columns"], item["referred_table"], item["referred_columns"])
            for item in inspector.get_foreign_keys(name)
        },
    )
    yield "index", _declared_indexes(table, dialect), _live_indexes(inspector, name, dialect)


def _constraints(table: Table, kind: type[Any]) -> list[Any]:
    own = (constraint for column in table.columns for constraint in column.constraints)
    return [constraint for constraint in (*table.constraints, *own) if type(constraint) is kind]


def _columns(names: Any) -> str:
    return f"({', '.join(names)})"


def _reference(columns: Any, table: str, referred: Any) -> str:
    return f"{_columns(columns)} -> {table} {_columns(referred)}"


# -- columns -----------------------------------------------------------------------------------------------------


def _declared_column(column: Column[Any], dialect: Dialect) -> str:
    default = column.server_default
    words = None
    if isinstance(default, DefaultClause):
        arg = default.arg
        words = arg if isinstance(arg, str) else str(arg.compile(dialect=dialect))
    return _column(column.type.compile(dialect=dialect), nullable=bool(column.nullable), default=words)


def _live_column(column: Any, dialect: Dialect) -> str:
    return _column(column["type"].compile(dialect=dialect), nullable=column["nullable"], default=column["default"])


def _column(type_: str, *, nullable: bool, default: str | None) -> str:
    words = type_ if nullable else f"{type_} NOT NULL"
    return words if default is None else f"{words} DEFAULT {_canonical(default)}"


# -- indexes -----------------------------------------------------------------------------------------------------


def _declared_indexes(table: Table, dialect: Dialect) -> Facts:
    facts = {}
    for index in table.indexes:
        condition = str(CreateIndex(index).compile(dialect=dialect)).partition(" WHERE ")[2]
        facts[str(index.name)] = _index(index.columns.keys(), unique=bool(index.unique), condition=condition)
    return facts


def _live_indexes(inspector: Inspector, table: str, dialect: Dialect) -> Facts:
    facts = {}
    for index in inspector.get_indexes(table):
        if "duplicates_constraint" in index:
            continue
        columns = [name or "an expression" for name in index["column_names"]]
        condition = str(index.get("dialect_options", {}).get(f"{dialect.name}_where", ""))
        facts[str(index["name"])] = _index(columns, unique=bool(index["unique"]), condition=condition)
    return facts


def _index(columns: Any, *, unique: bool, condition: str) -> str:
    words = f"{'unique ' if unique else ''}{_columns(columns)}"
    return f"{words} where {_canonical(condition)}" if condition else words


# -- conditions --------------------------------------------------------------------------------------------------

_TYPE: Final = (
    r"(?:character varying|timestamp with(?:out)? time zone|double precision|\w+)(?:\(\d+(?:, ?\d+)?\))?(?:\[\])?"
)


def _canonical(sql: str) -> str:
    """One spelling for what was declared and what the database made of it.

    Parentheses go too: the two sides nest them differently, and AND/OR keep their order.
    """
    sql = re.sub(r"'(-?\d+)'::(?:bigint|integer|numeric)", r"\1", sql)
    sql = re.sub(rf"::{_TYPE}", "", sql)
    sql = re.sub(rf"CAST\((\w+) AS {_TYPE}\)", r"\1", sql, flags=re.IGNORECASE)
    sql = re.sub(r"[()]", " ", sql)
    sql = re.sub(r"= ANY +ARRAY\[(.*?)\]", r"IN \1", sql)
    sql = re.sub(r"<> ALL +ARRAY\[(.*?)\]", r"NOT IN \1", sql)
    return " ".join(sql.split()).replace(" ,", ",")


# -- triggers ----------------------------------------------------------------------------------------------------

_TRIGGER: Final = re.compile(
    r"CREATE (?:OR REPLACE )?TRIGGER (?P<name>\w+) (?P<time>BEFORE|AFTER) (?P<events>\w[\w ]*?)"
    r" ON (?:\w+\.)?(?P<table>\w+) FOR EACH (?P<level>ROW|STATEMENT) EXECUTE FUNCTION (?:\w+\.)?(?P<function>\w+)\(\)"
)

_FUNCTION: Final = re.compile(r"FUNCTION (\w+)\(\) .*\$\$(.*)\$\$")


def _declared_triggers(dialect_name: str) -> Facts:
    statements = trigger_statements(dialect_name)
    if dialect_name == "sqlite":
        return {name: sql for sql in statements if (name := _sqlite_trigger(sql))}
    bodies = {match[1]: match[2] for sql in statements if (match := _FUNCTION.search(sql))}
    found = filter(None, map(_TRIGGER.fullmatch, statements))
    return {match["name"]: _trigger(match, bodies[match["function"]]) for match in found}


def _live_triggers(connection: Connection) -> Facts:
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'")
        return {name: sql for name, table, sql in rows if table in metadata.tables}
    rows = connection.execute(
        text(
            "SELECT t.tgname, t.tgenabled, pg_get_triggerdef(t.oid), p.prosrc FROM pg_trigger t"
            " JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_proc p ON p.oid = t.tgfoid"
            " WHERE NOT t.tgisinternal AND n.nspname = current_schema() AND c.relname = ANY(:tables)"
        ),
        {"tables": list(metadata.tables)},
    )
    facts = {}
    for name, enabled, definition, body in rows:
        match = _TRIGGER.fullmatch(definition)
        words = _trigger(match, body) if match else str(definition)
        # O fires in ordinary sessions, A always; D and R leave the table open.
        facts[name] = words if enabled in ("O", "A") else f"disabled: {words}"
    return facts


def _sqlite_trigger(sql: str) -> str | None:
    match = re.match(r"CREATE TRIGGER (\w+) ", sql)
    return match[1] if match else None


def _trigger(match: re.Match[str], body: str) -> str:
    events = " or ".join(sorted(match["events"].split(" OR ")))
    return (
        f"{match['time']} {events} ON {match['table']} FOR EACH {match['level']}"
        f" EXECUTE {match['function']}: {' '.join(body.split())}"
    )


# -- row security ------------------------------------------------------------------------------------------------


def _declared_policies(connection: Connection) -> Facts:
    facts = dict.fromkeys(row_security.TABLES, "ENABLED, FORCED")
    function = f"{ACCOUNTS_FUNCTION}()"
    owner = connection.execute(
        text("SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE oid = to_regprocedure(:name)"), {"name": function}
    ).scalar()
    for table in row_security.TABLES:
        for name, policy in row_security.policies(table).items():
            check = "" if policy.command == "SELECT" else policy.condition
            role = str(owner) if policy.owner else "public"
            facts[f"{table}.{name}"] = _policy("PERMISSIVE", policy.command, role, policy.condition, check)
    return facts


def _live_policies(connection: Connection) -> Facts:
    names = {"tables": list(row_security.TABLES)}
    facts = {}
    for table, enabled, forced in connection.execute(
        text(
            "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class"
            " WHERE relnamespace = current_schema()::regnamespace AND relname = ANY(:tables)"
        ),
        names,
    ):
        facts[table] = f"{'ENABLED' if enabled else 'disabled'}, {'FORCED' if forced else 'not forced'}"
    for table, name, kind, roles, command, using, check in connection.execute(
        text(
            "SELECT tablename, policyname, permissive, array_to_string(roles, ', '), cmd, qual, with_check"
            " FROM pg_policies WHERE schemaname = current_schema() AND tablename = ANY(:tables)"
        ),
        names,
    ):
        facts[f"{table}.{name}"] = _policy(kind, command, roles, using or "", check or "")
    return facts


def _policy(kind: str, command: str, roles: str, using: str, check: str) -> str:
    return f"{kind} FOR {command} TO {roles} USING {_canonical(using)} CHECK {_canonical(check)}"
