"""Every public error can be raised with a bare message, carries facts, and survives a process boundary whole."""

from __future__ import annotations

import copy
import inspect
import pickle
from decimal import Decimal
from typing import Any

import pytest

from agentcredits import errors
from agentcredits.errors import CreditsError, StoreUnavailableError

EVERY_ERROR: list[type[CreditsError]] = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if issubclass(member, CreditsError) and not member.__name__.startswith("_")
]

FULL: dict[str, Any] = {
    "reason": "some_reason",
    "limit_source": "limit",
    "retryable": True,
    "context": {"available": Decimal("3.5"), "required": Decimal(10), "organization_id": "acme"},
    "suggestions": ("grant credits", "use fewer tokens"),
    "fixes": ({"param": "max_tokens", "value": 2500},),
    "result": {"url": "https://example.com/video.mp4"},
}


def state_of(error: CreditsError) -> dict[str, Any]:
    """Everything that a caller can read from an error."""
    return {
        "type": type(error),
        "str": str(error),
        "args": error.args,
        "message": error.message,
        "reason": error.reason,
        "limit_source": error.limit_source,
        "retryable": error.retryable,
        "context": error.context,
        "suggestions": error.suggestions,
        "fixes": error.fixes,
        "result": error.result,
        "as_dict": error.as_dict(),
        "notes": getattr(error, "__notes__", []),
    }


def test_the_list_of_errors_is_not_empty() -> None:
    """The parametrised tests below cover the errors that the design names."""
    names = {error.__name__ for error in EVERY_ERROR}
    assert {
        "CreditsError",
        "InsufficientCreditsError",
        "CreditLimitExceededError",
        "UnpricedActionError",
        "MissingContextError",
        "ReservationNotFoundError",
        "ReservationExpiredError",
        "ReservationAlreadySettledError",
        "IdempotencyMismatchError",
        "RefundExceedsChargeError",
        "InvalidAmountError",
        "StoreUnavailableError",
        "SettlementFailedError",
    } <= names


@pytest.mark.parametrize("error_type", EVERY_ERROR)
def test_a_bare_message_is_enough(error_type: type[CreditsError]) -> None:
    """``SomeError("text")`` works, and everything else has a default of its class."""
    error = error_type("Not enough credits")
    assert str(error) == "Not enough credits"
    assert error.message == "Not enough credits"
    assert error.reason == error_type.code
    assert error.retryable is error_type.default_retryable
    assert error.limit_source == error_type.default_limit_source
    assert error.context == {}
    assert error.suggestions == ()
    assert error.fixes == ()
    assert error.result is None


@pytest.mark.parametrize("error_type", EVERY_ERROR)
def test_no_message_gives_the_class_sentence(error_type: type[CreditsError]) -> None:
    """An error without a message still says something, as a whole sentence."""
    assert str(error_type()) == error_type.default_message
    assert error_type.default_message.strip()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error_type", EVERY_ERROR)
def test_an_error_pickles_with_everything_it_carries(error_type: type[CreditsError], protocol: int) -> None:
    """Process pools and task queues hand the error on unchanged, notes included."""
    error = error_type("organization acme has 3.5 credits available, needs 10", **FULL)
    error.add_note("the body failed first")
    assert state_of(error) == state_of(pickle.loads(pickle.dumps(error, protocol=protocol)))


@pytest.mark.parametrize("error_type", EVERY_ERROR)
def test_an_error_copies_with_everything_it_carries(error_type: type[CreditsError]) -> None:
    """Copy and deepcopy give an equal error; a deep copy shares no mutable part."""
    error = error_type("message", **FULL)
    deep = copy.deepcopy(error)
    assert state_of(error) == state_of(copy.copy(error)) == state_of(deep)
    deep.context["available"] = Decimal(0)
    assert error.context["available"] == Decimal("3.5")


class QuotaError(CreditsError):
    """A user's own subclass whose constructor takes other arguments."""

    code = "quota"

    def __init__(self, tenant: str, missing: int) -> None:
        super().__init__(f"{tenant} misses {missing}", context={"missing": missing})
        self.tenant = tenant


def test_a_subclass_with_its_own_constructor_pickles() -> None:
    """Unpickling does not call a subclass's constructor, so its arguments need not be guessed."""
    loaded = pickle.loads(pickle.dumps(QuotaError("acme", 7)))
    assert (type(loaded), str(loaded), loaded.tenant, loaded.context) == (
        QuotaError,
        "acme misses 7",
        "acme",
        {"missing": 7},
    )


@pytest.mark.parametrize("error_type", EVERY_ERROR)
def test_as_dict_is_plain_data_that_shares_nothing(error_type: type[CreditsError]) -> None:
    """as_dict names every fact; changing it does not change the error."""
    error = error_type("message", **FULL)
    data = error.as_dict()
    assert data == {
        "code": error_type.code,
        "status": error_type.http_status,
        "message": "message",
        "reason": "some_reason",
        "limit_source": "limit",
        "retryable": True,
        "context": FULL["context"],
        "suggestions": list(FULL["suggestions"]),
        "fixes": [dict(fix) for fix in FULL["fixes"]],
    }
    data["context"]["available"] = None
    data["fixes"][0]["value"] = None
    data["suggestions"].clear()
    assert state_of(error) == state_of(error_type("message", **FULL))


@pytest.mark.parametrize("error_type", EVERY_ERROR)
def test_an_error_does_not_share_the_callers_mutable_arguments(error_type: type[CreditsError]) -> None:
    """What the caller does with its own dict afterwards does not reach the error."""
    context, fix = {"available": 1}, {"param": "quantity", "value": 1}
    error = error_type("message", context=context, fixes=[fix])
    context["available"] = 2
    fix["value"] = 2
    assert (error.context, error.fixes) == ({"available": 1}, ({"param": "quantity", "value": 1},))


def test_codes_are_unique_and_statuses_are_http_errors() -> None:
    """A program can branch on the code alone; money is 402 and never 429."""
    codes = [error.code for error in EVERY_ERROR]
    assert len(codes) == len(set(codes))
    assert all(400 <= error.http_status <= 599 for error in EVERY_ERROR)
    assert 429 not in {error.http_status for error in EVERY_ERROR}
    assert errors.InsufficientCreditsError.http_status == 402
    assert errors.CreditLimitExceededError.http_status == 402


@pytest.mark.parametrize("error_type", EVERY_ERROR)
def test_every_error_is_caught_by_the_base(error_type: type[CreditsError]) -> None:
    """``except CreditsError`` catches them all, and every public class says in its docstring what it means."""
    with pytest.raises(CreditsError):
        raise error_type
    assert (error_type.__doc__ or "").strip()


def test_bad_input_is_a_value_error_too() -> None:
    """Code that catches ValueError for bad arguments keeps working."""
    with pytest.raises(ValueError, match="cannot be used"):
        raise errors.InvalidAmountError
    assert issubclass(errors.InvalidAmountError, errors.InvalidInputError)


def test_an_unknown_account_is_a_kind_of_insufficient_credits() -> None:
    """Who handles being out of credits also handles an organization without an account."""
    assert issubclass(errors.AccountNotFoundError, errors.InsufficientCreditsError)
    assert "grant credits" in errors.AccountNotFoundError.default_message


def test_store_unavailable_names_the_key_and_the_outcome() -> None:
    """The caller learns under which key the same call can be repeated, after pickling too."""
    error = StoreUnavailableError(context={"idempotency_key": "k-1", "outcome": "not_started"})
    loaded = pickle.loads(pickle.dumps(error))
    assert (loaded.idempotency_key, loaded.outcome, loaded.retryable) == ("k-1", "not_started", True)
    assert (StoreUnavailableError().idempotency_key, StoreUnavailableError().outcome) == (None, "unknown")
