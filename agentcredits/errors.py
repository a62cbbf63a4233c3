"""Every error that agentcredits raises.

Each error carries facts that a program can act on beside the sentence that a person reads: ``code``,
``http_status``, ``reason``, ``limit_source``, ``retryable``, ``context`` (numbers), ``suggestions`` (sentences)
and ``fixes`` (machine-applicable, such as ``{"param": "max_tokens", "value": 2500}``). Each can be raised with a
bare message and pickles with everything it carries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class CreditsError(Exception):
    """Base of every error of agentcredits.

    Args:
        message: One sentence for a person; the class's ``default_message`` when left out.
        reason: Stable machine-readable cause; the class's ``code`` when left out.
        limit_source: What said no: ``"balance"``, ``"account"``, ``"reservation"``, ``"price"``, ``"store"``, or the
            scope of a limit (``"organization"``, ``"department"``, ``"user"``, ``"run"`` …).
        retryable: Whether the same call can succeed later without anybody changing anything.
        context: Numbers and ids behind the sentence; amounts in credits (Decimal).
        suggestions: Sentences that say how to get on.
        fixes: Machine-applicable changes of the request.
        result: What the caller's finished work returned, where an error is raised after it.
    """

    code: ClassVar[str] = "credits_error"
    http_status: ClassVar[int] = 500
    default_message: ClassVar[str] = "The credits operation failed."
    default_retryable: ClassVar[bool] = False
    default_limit_source: ClassVar[str | None] = None

    def __init__(
        self,
        message: str | None = None,
        *,
        reason: str | None = None,
        limit_source: str | None = None,
        retryable: bool | None = None,
        context: Mapping[str, Any] | None = None,
        suggestions: Iterable[str] = (),
        fixes: Iterable[Mapping[str, Any]] = (),
        result: Any = None,
    ) -> None:
        self.message = message if message is not None else self.default_message
        super().__init__(self.message)
        self.reason = reason if reason is not None else self.code
        self.limit_source = limit_source if limit_source is not None else self.default_limit_source
        self.retryable = self.default_retryable if retryable is None else retryable
        self.context: dict[str, Any] = dict(context or {})
        self.suggestions: tuple[str, ...] = tuple(suggestions)
        self.fixes: tuple[dict[str, Any], ...] = tuple(dict(fix) for fix in fixes)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message), dict(self.__dict__))

    def as_dict(self) -> dict[str, Any]:
        """The error as plain data (for JSON answers and logs); amounts stay Decimal."""
        return {
            "code": self.code,
            "status": self.http_status,
            "message": self.message,
            "reason": self.reason,
            "limit_source": self.limit_source,
            "retryable": self.retryable,
            "context": dict(self.context),
            "suggestions": list(self.suggestions),
            "fixes": [dict(fix) for fix in self.fixes],
        }


def _rebuild(cls: type[CreditsError], message: str) -> CreditsError:
    """Unpickle without running a subclass's own ``__init__`` (it may take other arguments)."""
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    return error


# -- bad input ---------------------------------------------------------------------------------------------------


class InvalidInputError(CreditsError, ValueError):
    """An argument cannot be used; nothing was changed."""

    code = "invalid_input"
    http_status = 422
    default_message = "An argument cannot be used."


class InvalidAmountError(InvalidInputError):
    """An amount is not a finite number of credits in range with at most 6 decimals."""

    code = "invalid_amount"
    default_message = "The amount cannot be used."


class ConfigurationError(CreditsError):
    """A setting, database URL or decorator argument cannot be used."""

    code = "configuration_error"
    default_message = "The configuration cannot be used."


# -- out of credits ----------------------------------------------------------------------------------------------


class InsufficientCreditsError(CreditsError):
    """The account has fewer credits available than the action needs; nothing was charged."""

    code = "insufficient_credits"
    http_status = 402
    default_message = "Not enough credits."
    default_limit_source = "balance"


class AccountNotFoundError(InsufficientCreditsError):
    """The organization has no account yet: grant credits first."""

    code = "account_not_found"
    default_message = "The organization has no credit account: grant credits first."


class AccountFrozenError(CreditsError):
    """An operator froze or closed the account: nothing new is charged or held; running work still settles."""

    code = "account_frozen"
    http_status = 403
    default_message = "The credit account is frozen."
    default_limit_source = "account"


class AccountClosedError(AccountFrozenError):
    """An operator closed the account: nothing is charged, held or granted; running work still settles."""

    code = "account_closed"
    default_message = "The credit account is closed."


class CreditLimitExceededError(CreditsError):
    """A limit of the organization or of a scope below it refuses the action; nothing was charged."""

    code = "credit_limit_exceeded"
    http_status = 402
    default_message = "A credit limit is reached."
    default_limit_source = "limit"


class RunEndedError(CreditLimitExceededError):
    """The run has ended: what is held in it still settles, nothing new begins in it."""

    code = "run_ended"
    http_status = 409
    default_message = "The run has ended."
    default_limit_source = "run"


class RunNotFoundError(CreditsError):
    """No such run in this organization."""

    code = "run_not_found"
    http_status = 404
    default_message = "No such run."


class LimitNotFoundError(CreditsError):
    """The organization has no such limit (another organization's answers the same)."""

    code = "limit_not_found"
    http_status = 404
    default_message = "There is no such limit."


class ProviderUnavailableError(CreditsError):
    """The operator's account at a media provider cannot be used now; nothing was generated, nothing was charged.

    The sentence is fit for customers. ``__cause__`` has the client's own error, where there was a call.
    """

    code = "provider_unavailable"
    http_status = 503
    default_message = "This service is not available at the moment. Please try again later."
    default_limit_source = "provider"

    @property
    def provider(self) -> str | None:
        """The provider's name; for logs."""
        return self.context.get("provider")

    @property
    def category(self) -> str | None:
        """``"credits_exhausted"``, ``"account_locked"`` or ``"quota_window"``."""
        return self.context.get("category")


class OverageRejectedError(CreditsError):
    """A commit asks for more than its reservation holds and the policy is REJECT; the hold stays."""

    code = "overage_rejected"
    http_status = 402
    default_message = "The commit is larger than its reservation."
    default_limit_source = "reservation"


# -- prices and identity -----------------------------------------------------------------------------------------


class UnpricedActionError(CreditsError):
    """A metered action has no usable price in ``agent_action_costs``; it did not run."""

    code = "unpriced_action"
    default_message = "The action has no price."
    default_limit_source = "price"


class MissingContextError(CreditsError):
    """No RequestContext says which organization pays; the action did not run."""

    code = "missing_context"
    http_status = 401
    default_message = "No RequestContext is active: enter use_context(RequestContext(organization_id=...))."


class DryRunNotSupportedError(CreditsError):
    """The context asks for a dry run, and the action declared none; it did not run."""

    code = "dry_run_not_supported"
    http_status = 409
    default_message = "The action declares no dry run."


# -- reservations ------------------------------------------------------------------------------------------------


class ReservationError(CreditsError):
    """Base of what can be wrong with a reservation."""

    code = "reservation_error"
    http_status = 409
    default_message = "The reservation cannot be used so."
    default_limit_source = "reservation"


class ReservationNotFoundError(ReservationError):
    """The organization has no such reservation (another organization's answers the same)."""

    code = "reservation_not_found"
    http_status = 404
    default_message = "There is no such reservation."


class ReservationExpiredError(ReservationError):
    """The hold's time-to-live ended before it was settled; its credits went back."""

    code = "reservation_expired"
    http_status = 410
    default_message = "The reservation has expired."


class ReservationAlreadySettledError(ReservationError):
    """The hold was already committed or released in another way."""

    code = "reservation_already_settled"
    default_message = "The reservation is already settled."


class ReservationInUseError(ReservationError):
    """The hold belongs to another attempt with the same key that is still running."""

    code = "reservation_in_use"
    default_message = "Another attempt with the same key is still running."
    default_retryable = True


class ReservationUnknownError(ReservationError):
    """The provider's verdict is awaited: the hold can be committed or released, not extended."""

    code = "reservation_unknown"
    default_message = "The reservation awaits the provider's verdict."


# -- ledger rows -------------------------------------------------------------------------------------------------


class GrantNotFoundError(CreditsError):
    """The organization has no such grant (another organization's answers the same)."""

    code = "grant_not_found"
    http_status = 404
    default_message = "There is no such grant."


class RecurringGrantNotFoundError(CreditsError):
    """The organization has no such recurring grant (another organization's answers the same)."""

    code = "recurring_grant_not_found"
    http_status = 404
    default_message = "There is no such recurring grant."


class TransactionNotFoundError(CreditsError):
    """The organization has no such transaction (another organization's answers the same)."""

    code = "transaction_not_found"
    http_status = 404
    default_message = "There is no such transaction."


class RefundExceedsChargeError(CreditsError):
    """The refunds of a charge together would be larger than the charge."""

    code = "refund_exceeds_charge"
    http_status = 409
    default_message = "The refund is larger than what is left of the charge."


class IdempotencyMismatchError(CreditsError):
    """The key was used before with another payload."""

    code = "idempotency_mismatch"
    http_status = 409
    default_message = "The idempotency key was used before with another payload."


# -- the store ---------------------------------------------------------------------------------------------------


class StoreUnavailableError(CreditsError):
    """The database did not answer in time or is away.

    ``context["outcome"]`` is ``"not_started"`` (nothing was written) or ``"unknown"`` (the answer was lost: retry
    with ``context["idempotency_key"]`` and nothing happens twice).
    """

    code = "store_unavailable"
    http_status = 503
    default_message = "The credits database is not available."
    default_retryable = True
    default_limit_source = "store"

    @property
    def idempotency_key(self) -> str | None:
        """The key under which the same call can be repeated safely, generated ones included."""
        key = self.context.get("idempotency_key")
        return None if key is None else str(key)

    @property
    def outcome(self) -> str:
        """``"not_started"`` or ``"unknown"``."""
        return str(self.context.get("outcome", "unknown"))


class StoreError(CreditsError):
    """The database refused a statement for a reason of its own; nothing was written. ``__cause__`` has it."""

    code = "store_error"
    default_message = "The credits database refused a statement."
    default_limit_source = "store"


class SchemaError(CreditsError):
    """The database's schema is missing or is not the one that this version needs."""

    code = "schema_error"
    default_message = "The credits schema is missing or old: run `agentcredits db upgrade`."
    default_limit_source = "store"


class AccountLockedError(CreditsError):
    """The caller's own open transaction holds the account: waiting for it would never end."""

    code = "account_locked"
    http_status = 409
    default_message = "The organization is locked by your open transaction: pass session= or commit first."
    default_limit_source = "store"


class SettlementFailedError(CreditsError):
    """The work is done, its settlement is not booked yet and is being retried; ``result`` is the work's result."""

    code = "settlement_failed"
    http_status = 503
    default_message = "The work is done, but its charge is not booked yet; it is being retried."
    default_retryable = True
    default_limit_source = "store"


class ServiceClosedError(CreditsError):
    """The service was closed."""

    code = "service_closed"
    default_message = "The credit service is closed."


class AgentCreditsWarning(UserWarning):
    """A doubtful but allowed use of agentcredits."""
