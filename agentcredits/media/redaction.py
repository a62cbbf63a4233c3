"""Keys, tokens and passwords are taken out of a text before it is stored, logged or shown."""

from __future__ import annotations

import re
from typing import Final

#: What stands where a secret stood.
MASK: Final = "[redacted]"

#: Names whose value is a secret, wherever they stand before ``=`` or ``:`` (a query, a header, JSON, a repr).
_NAMES: Final = (
    r"(?:[a-z0-9]{1,30}[-_]){0,4}(?:api[-_]?key|access[-_]?key(?:[-_]?id)?|secret(?:[-_]?key)?|token|passw(?:or)?d|pwd"
    r"|signature|credentials?|authorization|cookie)|sig|xi-api-key|x-key|apikey|jwt"
)
#: What the keys of providers begin with.
_PREFIXES: Final = (
    *("sk-", "sk_", "pk_", "rk_", "r8_", "hf_", "fal_", "fal-", "key-", "key_", "tok_", "xai-", "gsk_", "glpat-"),
    *("ghp_", "gho_", "github_pat_", "xoxa-", "xoxb-", "xoxp-", "whsec_", "luma-", "nvapi-", "tgp_v1_"),
)

#: Each pattern keeps its first group (what says that a secret follows) and masks the rest. It is tried when one of the
#: marks before it stands in the lower-case text: most messages hold none.
_PATTERNS: Final = (
    # scheme://user:password@host
    (("@",), re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://)[^\s/@]{1,200}@", re.IGNORECASE)),
    # Authorization: Bearer …, Basic …, Key id:secret, Token … (a plain word after the last three is not a secret)
    (("bearer",), re.compile(r"(\bbearer\s{1,3})[A-Za-z0-9._~+/=:-]{8,4000}", re.IGNORECASE)),
    (
        ("basic ", "key ", "token "),
        re.compile(
            r"(\b(?:basic|key|token)\s{1,3})(?=[^\s'\"]{0,200}[0-9=])[A-Za-z0-9._~+/=:-]{8,4000}", re.IGNORECASE
        ),
    ),
    # name=value, name: value, "name": "value"
    (
        ("key", "token", "secret", "pass", "pwd", "sig", "credential", "authoriz", "cookie", "jwt"),
        re.compile(
            rf"((?<![a-z0-9])(?:{_NAMES})['\"]?\s{{0,3}}[=:]\s{{0,3}}['\"]?)[^\s'\",;&}}\])]{{4,4000}}", re.IGNORECASE
        ),
    ),
    (
        _PREFIXES,
        re.compile(rf"()\b(?:{'|'.join(_PREFIXES)})(?=[A-Za-z0-9_*.-]*[0-9*])[A-Za-z0-9_*.-]{{8,4000}}"),
    ),
    (("aiza",), re.compile(r"()\bAIza[A-Za-z0-9_-]{20,60}")),
    (("akia", "asia"), re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")),
    (("eyj",), re.compile(r"()\beyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{4,4000}(?:\.[A-Za-z0-9_-]{0,4000})?")),
)
#: An id and a secret joined by a colon, and any long run of hexadecimal digits; tried when there is a shorter run.
_HEXADECIMAL: Final = re.compile(
    r"()\b(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9a-f]{16,64}|[0-9a-f]{40,128})\b", re.IGNORECASE
)
_RUN: Final = re.compile(r"[0-9a-f]{12}")


def redact(text: str) -> str:
    """The text without API keys, bearer tokens, passwords in URLs and secret values of queries, headers and JSON.

    Args:
        text: Any text, a provider's message for one.

    Returns:
        The text with each secret replaced by ``[redacted]``; redacting twice changes nothing more.
    """
    lowered = text.lower()
    for marks, pattern in _PATTERNS:
        for mark in marks:
            if mark in lowered:
                text = pattern.sub(_mask, text)
                break
    if _RUN.search(lowered) is not None:
        text = _HEXADECIMAL.sub(_mask, text)
    return text


def _mask(found: re.Match[str]) -> str:
    if found[0].endswith((MASK, MASK[:-1])):
        return found[0]
    return f"{found[1]}{MASK}{'@' if found[0].endswith('@') else ''}"
