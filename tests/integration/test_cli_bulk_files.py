"""Files of bulk grants and adjustments: what they may hold; a bad line is reported and stops no other."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from agentcredits import AccountNotFoundError, SyncCreditService
from tests.integration.cli_calls import Call, available


def test_every_line_of_a_csv_file_is_granted(bulk: Call, tmp_path: Path, service: SyncCreditService) -> None:
    """A spreadsheet's file: BOM, CRLF, quoted fields with commas and lines in them, empty fields and rows."""
    path = tmp_path / "grants.csv"
    path.write_bytes(
        b"\xef\xbb\xbforganization_id,amount,category,priority,effective_at,expires_at,source\r\n"
        b'acme,12.5,promotional,10,2031-01-01T02:00:00+02:00,2032-01-01T00:00:00Z,"spring, ""2026"""\r\n'
        b",,,,,,\r\n"
        b"\r\n"
        b'beta,0.000001,,,,,"two\r\nlines"\r\n' + "zoë,3,paid,,,,\r\n".encode()
    )
    answer = bulk("grant", path)
    assert (answer.code, answer.counts) == (0, (3, 0, 0))
    (grant,) = service.list_grants("acme")
    assert (grant.amount, grant.category.value, grant.priority) == (Decimal("12.5"), "promotional", 10)
    assert grant.effective_at == datetime(2031, 1, 1, tzinfo=UTC)
    assert grant.expires_at == datetime(2032, 1, 1, tzinfo=UTC)
    assert grant.source == 'spring, "2026"'
    assert [row.idempotency_key for row in service.list_transactions("acme")] == ["k:2"]
    (grant,) = service.list_grants("beta")
    assert (grant.amount, grant.category.value, grant.priority, grant.source) == (
        Decimal("0.000001"), "paid", 50, "two\nlines",
    )  # fmt: skip
    assert [row.idempotency_key for row in service.list_transactions("beta")] == ["k:5"]
    assert available(service, "zoë") == [3]
    assert answer.data["booked_credits"] == Decimal("15.500001")
    assert answer.data["booked_micros"] == 15_500_001


def test_json_lines_are_exact(bulk: Call, write: Callable[..., Path], service: SyncCreditService) -> None:
    """Numbers keep every digit; null and blank lines are as if they were not there; the ending tells the format."""
    path = write(
        '{"organization_id": "acme", "amount": 9007199254.740991, "priority": 7, "source": null}',
        "",
        '{"amount": "0.5", "organization_id": "beta", "category": "plan"}',
        '{"amount": 3, "organization_id": "beta"}',
        name="grants.jsonl",
    )
    answer = bulk("grant", path)
    assert (answer.code, answer.counts) == (0, (3, 0, 0))
    assert available(service, "acme", "beta") == [Decimal("9007199254.740991"), Decimal("3.5")]
    assert service.list_grants("acme")[0].priority == 7
    keys = {row.idempotency_key for name in ("acme", "beta") for row in service.list_transactions(name)}
    assert keys == {"k:1", "k:3", "k:4"}


def test_adjustments_give_and_take(bulk: Call, write: Callable[..., Path], service: SyncCreditService) -> None:
    """Signed amounts, each with its reason; the report's credits are net."""
    service.grant_credits("acme", 10)
    path = write("amount,organization_id,reason", "-4,acme,granted twice", "+1.5,beta,goodwill")
    answer = bulk("adjust", path)
    assert (answer.code, answer.counts, answer.data["booked_credits"]) == (0, (2, 0, 0), Decimal("-2.5"))
    assert available(service, "acme", "beta") == [6, Decimal("1.5")]
    assert service.list_transactions("acme").items[0].reason == "granted twice"


def test_standard_input_is_a_file_too(bulk: Call, service: SyncCreditService, monkeypatch: pytest.MonkeyPatch) -> None:
    """- reads CSV, or JSON lines when --format says so; standard input stays open."""
    for source, words in (
        (b"organization_id,amount\nacme,2\n", ()),
        (b'{"organization_id": "beta", "amount": 3}', ("--format", "jsonl")),
    ):
        stdin = io.TextIOWrapper(io.BytesIO(source))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert bulk("grant", "-", *words).counts == (1, 0, 0)
        assert not stdin.closed
    assert available(service, "acme", "beta") == [2, 3]


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("organization_id,amount,colour", "unknown column 'colour'"),
        ("organization_id,amount,amount", "names 'amount' twice"),
        ("organization_id,category", "lacks amount"),
        ("organization_id;amount", "separated by commas"),
        ("organization_id\tamount", "separated by commas"),
        ("Organization_id,amount", "unknown column 'Organization_id'"),
        ("acme,5", "unknown column 'acme'"),
        ('"organization_id,amount', "cannot be read"),
        ("", "no header"),
    ],
)
def test_a_header_that_cannot_be_is_refused_whole(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService, header: str, sentence: str
) -> None:
    """Before any line is booked: the sentence names the columns."""
    answer = bulk("grant", write(header, "acme,5") if header else write())
    assert (answer.code, answer.out) == (2, "")
    assert sentence in json.loads(answer.err)["error"]["message"]
    with pytest.raises(AccountNotFoundError):
        service.get_balance("acme")


@pytest.mark.parametrize("kind", ["missing", "folder", "long key", "empty key"])
def test_a_file_or_key_that_cannot_be_is_one_sentence(
    bulk: Call, write: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """Exit code 2 and nothing on standard output."""
    path = {"missing": tmp_path / "none.csv", "folder": tmp_path}.get(kind) or write("organization_id,amount", "acme,5")
    answer = bulk("grant", path, key={"long key": "k" * 241, "empty key": ""}.get(kind, "k"))
    assert (answer.code, answer.out) == (2, "")
    message = json.loads(answer.err)["error"]["message"]
    assert ("--key" if "key" in kind else f"the file {path} cannot be read") in message


GOOD = "good-{},1,"

CSV_FAULTS = {
    "acme,0,": "amount must be above zero.",
    "acme,-5,": "must not be negative",
    "acme,nan,": "must be finite",
    "acme,0.0000001,": "decimals",
    "acme,1e30,": "amount",
    "acme,\u0661,": "plain decimal number",
    "acme,,": "amount is missing.",
    ",5,": "organization_id is missing.",
    f"{'a' * 256},5,": "at most 255",
    "acme,5,x,y": "the line has 4 fields, the header 3",
    "acme,5": "the line has 2 fields, the header 3",
    'acme,5,"a" b': "not valid CSV",
    "acme,5,tomorrow": "expires_at tomorrow is not a time",
    "acme,5,2031-01-01": "has no time zone",
    "acme,5,2001-01-01T00:00:00Z": "later than now",
    "acme,5,\x00": "",
    f"acme,5,{'x' * 70_000}": "longer than 65,536 characters",
}


def test_a_bad_line_is_reported_and_stops_no_other(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService
) -> None:
    """Between any two bad lines the good one is booked; each bad one is named by its number, with its reason."""
    lines = ["organization_id,amount,expires_at"]
    for number, fault in enumerate(CSV_FAULTS):
        lines += [GOOD.format(number), fault]
    answer = bulk("grant", write(*lines))
    assert (answer.code, answer.counts) == (2, (len(CSV_FAULTS), 0, len(CSV_FAULTS)))
    assert list(answer.failed) == [3 + 2 * number for number in range(len(CSV_FAULTS))]
    for message, expected in zip(answer.failed.values(), CSV_FAULTS.values(), strict=True):
        assert expected in message
    assert available(service, *(f"good-{number}" for number in range(len(CSV_FAULTS)))) == [1] * len(CSV_FAULTS)
    with pytest.raises(AccountNotFoundError):
        service.get_balance("acme")


JSON_FAULTS = {
    '{"organization_id": "acme", "amount": NaN}': "NaN is not a number",
    '{"organization_id": "acme", "amount": 5, "amount": 6}': "names a column twice",
    '{"organization_id": "acme", "amount": 5, "colour": 1}': "unknown column 'colour'",
    '{"organization_id": "acme", "amount": true}': "not bool",
    '{"organization_id": "acme", "amount": 1e999999999999999999999}': "",
    '{"organization_id": 42, "amount": 5}': "must be a text, not int",
    '{"organization_id": "", "amount": 5}': "must not be empty",
    '{"organization_id": "acme", "amount": 5, "priority": 1.5}': "whole number",
    '{"organization_id": "acme", "amount": 5, "priority": true}': "whole number",
    '{"organization_id": "acme", "amount": 5, "category": "gift"}': "category must be one of",
    '{"organization_id": "acme", "amount": 5, "expires_at": 7}': "must be a text",
    '["acme", 5]': "not a JSON object",
    "acme,5": "not valid JSON",
    '{"a":' * 50_000: "longer than",
    "[" * 60_000: "not valid JSON",
}


def test_a_bad_json_line_is_reported_and_stops_no_other(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService
) -> None:
    """The same for JSON lines."""
    lines = [line for fault in JSON_FAULTS for line in (fault, '{"organization_id": "good", "amount": 1}')]
    answer = bulk("grant", write(*lines, name="grants.jsonl"))
    assert (answer.code, answer.counts) == (2, (len(JSON_FAULTS), 0, len(JSON_FAULTS)))
    for (line, message), expected in zip(answer.failed.items(), JSON_FAULTS.values(), strict=True):
        assert line % 2 == 1
        assert expected in message
    assert available(service, "good") == [len(JSON_FAULTS)]


def test_bytes_that_are_no_text_are_their_lines_fault(bulk: Call, tmp_path: Path, service: SyncCreditService) -> None:
    """Latin-1 in one line does not stop the others."""
    path = tmp_path / "grants.csv"
    path.write_bytes(b"organization_id,amount\nzo\xeb,5\nacme,5\n")
    answer = bulk("grant", path)
    assert answer.failed == {2: "the line is not UTF-8: save the file as UTF-8."}
    assert available(service, "acme") == [5]


def test_an_open_quote_is_reported_where_it_opens(bulk: Call, write: Callable[..., Path]) -> None:
    """It swallows what follows; none of that is booked, and the report says how far it reached."""
    path = write("organization_id,amount,source", "acme,5,", 'beta,5,"oops', "zeta,5,", "eta,5,")
    answer = bulk("grant", path)
    assert (answer.code, answer.counts) == (2, (1, 0, 1))
    assert "(read up to line 5)" in answer.failed[3]


@pytest.mark.parametrize("fault", ["acme,5,", "acme,x,why", "acme,0,why", "acme,-1000,why", "nobody,-1,why"])
def test_an_adjustment_that_cannot_be_is_reported(
    bulk: Call, write: Callable[..., Path], service: SyncCreditService, fault: str
) -> None:
    """No reason, no amount, or more than is available."""
    service.grant_credits("acme", 10)
    answer = bulk("adjust", write("organization_id,amount,reason", fault, "acme,1,good"))
    assert (answer.code, answer.counts, list(answer.failed)) == (2, (1, 0, 1), [2])
    assert available(service, "acme") == [11]
