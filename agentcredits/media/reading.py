"""How failures are written: names of fields, shapes of codes, texts that hold JSON; and reading them without harm.

Nothing of a client is imported: everything is read by name, and an attribute that raises counts as missing.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

#: How far into a text JSON may begin.
LONGEST_PREFIX: Final = 600
#: A repr is parsed by a slower and more delicate reader than JSON.
LONGEST_REPR: Final = 20_000


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Names of fields (lower case, without separators) that carry a code or a sentence.
SPEAKING: Final = _names(
    "message msg detail details title error errors errormessage errormsg errmsg err statusmsg statusmessage reason"
    " reasons description errordescription failure failurereason failreason failuremessage failedreason taskstatusmsg"
    " servermessage code type status errorcode errortype errcode name failurecode quotaid limitsource category state"
    " taskstatus finishreason blockreason blockreasonmessage httpcode statuscode httpstatuscode httpstatus subcode"
    " statusreason explanation faultstring raw errorinfo"
)
#: Of these, the ones whose number is the HTTP status when it looks like one.
STATUS_NAMES: Final = _names("code status statuscode httpcode httpstatus httpstatuscode errorcode")
#: Fields that repeat the request or carry the product: never read, never descended into.
ECHOING: Final = _names(
    "input inputs prompt promptt prompttext text texts content contents loc ctx body request requestbody params"
    " parameters arguments args payload messages instructions query image images imageurl video videos audio output"
    " outputs choices lyrics negativeprompt flaggedinput headersent example url docurl moreinfo helpurl"
)
#: A field with one of these names that holds something says that the object around it failed.
_FAULTY: Final = _names(
    "error errors errormessage errormsg errmsg failure failurereason failreason failurecode errorcode errortype"
    " errcode blockreason"
)
_FAILED_STATES: Final = _names(
    "failed failure error errored fail request_moderated content_moderated moderated blocked rejected task_not_found"
    " timeout timed_out expired"
)
_BLOCKED_FINISHES: Final = _names(
    "safety image_safety prohibited_content image_prohibited_content blocklist spii recitation image_recitation"
    " content_filter no_image image_other"
)
_FINISH_NAMES: Final = _names("finishreason blockreason")
_STATE_NAMES: Final = _names("status state taskstatus")

_NUMBERED: Final = _names("statuscode code httpcode")

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS: Final = re.compile(r"[\s._/:#-]+")
PAGE_TITLE: Final = re.compile(r"<title[^>]{0,200}>([^<]{1,300})", re.IGNORECASE)
_ECHOED: Final = re.compile(
    r"\b((?:prompt|text|input|query|caption|lyrics|content|string)s?\b[^\"'“`]{0,30})[\"'“`].{1,600}[\"'”`]",
    re.IGNORECASE | re.DOTALL,
)
_ODD_ESCAPE: Final = re.compile(r"\\[^\\'\"nrtabfvxuUN0-7\n]")
_QUOTES: Final = ('"', "'", "“", "`")
STATUS_IN_TEXT: Final = re.compile(
    r"(?:^|: |\(|\[|\b(?:error|status|code|http|http/1\.1|http/2)\W{1,3})([45]\d\d)"
    r"(?![\d.,%]|\s?(?:credits?|characters?|tokens?|chars|px|words|x\d))",
    re.IGNORECASE,
)

#: Attributes in which clients keep what a failure says.
ATTRIBUTES: Final = tuple(
    _names(
        "status_code http_status status code type error_type error_code reason body details error errors response"
        " headers response_headers request request_info server_message title detail message"
    )
)


_ATTRIBUTE_SET: Final = frozenset(ATTRIBUTES)
_NO_NAMES: Final[frozenset[str]] = frozenset()


@lru_cache(maxsize=512)
def about_class(cls: type[BaseException]) -> tuple[frozenset[str], str, frozenset[str]]:
    """Names of a class and its bases, its module, and which of ``ATTRIBUTES`` its instances may have."""
    kinds = frozenset(base.__name__ for base in cls.__mro__)
    module = str(cls.__module__)
    inherited = {name for base in cls.__mro__ for name in vars(base)}
    own_lookup = {name for base in cls.__mro__ if base.__module__ != "builtins" for name in vars(base)}
    if own_lookup & {"__getattr__", "__getattribute__"}:
        inherited.update(ATTRIBUTES)
    # aiohttp keeps `code` only to warn that it is deprecated
    return kinds, module, frozenset(inherited.intersection(ATTRIBUTES) - ({"code"} if "aiohttp" in module else set()))


def own_names(error: BaseException) -> frozenset[str]:
    """Which of ``ATTRIBUTES`` an exception keeps itself."""
    own = read(error, "__dict__")
    return _ATTRIBUTE_SET.intersection(own) if isinstance(own, dict) and own else _NO_NAMES


# -- reading by name -----------------------------------------------------------------------------------------------


def read(source: object, name: str) -> object:
    """An attribute, or None when it is missing or raises."""
    if source is None:
        return None
    try:
        return getattr(source, name, None)
    except Exception:  # noqa: BLE001  # properties of foreign objects raise anything
        return None


def entries(node: object) -> Iterator[tuple[object, object]]:
    """The named parts of a mapping or of an object that keeps its fields as attributes; at most 100."""
    try:
        if isinstance(node, Mapping):
            yield from list(node.items())[:100]
            return
        names = read(node, "__dataclass_fields__")
        if isinstance(names, Mapping):
            yield from ((name, read(node, str(name))) for name in list(names)[:100])
            return
        attributes = read(node, "__dict__")
        if isinstance(attributes, dict) and not isinstance(node, type):
            yield from list(attributes.items())[:100]
    except Exception:  # noqa: BLE001  # a hostile mapping has no parts
        return


def shows_failure(entries: list[tuple[str, object]]) -> bool:
    """Whether an object says that the work behind it failed."""
    names = {name for name, _ in entries}
    for name, value in entries:
        if name in _FAULTY and value not in (None, "", 0, False) and value != [] and value != {}:
            return True
        if name in _STATE_NAMES and isinstance(value, str) and normal_code(value) in _FAILED_STATES:
            return True
        if name in _FINISH_NAMES and isinstance(value, str) and normal_code(value) in _BLOCKED_FINISHES:
            return True
        if name in ("success", "ok") and value is False:
            return True
        if name in _NUMBERED and isinstance(value, int) and not isinstance(value, bool):
            told = names & {"statusmsg", "message", "msg", "error", "title"}
            if value >= 400 and told:
                return True
    return False


def as_status(value: object) -> int | None:
    """A number (or its three digits) that can be an HTTP status."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) == 3 and value.isdecimal() and value.isascii():
        value = int(value)
    if isinstance(value, int):
        return int(value) if 100 <= value <= 599 else None
    return None


@lru_cache(maxsize=1_024)
def _plain_name_of(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def plain_name(name: object) -> str:
    """The name of a field in lower case without separators; "" for what is no name."""
    return _plain_name_of(name[:64]) if isinstance(name, str) else ""


@lru_cache(maxsize=1_024)
def normal_code(code: str) -> str:
    """A code as rules write it: lower case, words joined by ``_``; of a URL its last part."""
    if "://" in code:
        code = re.split(r"[/#]", code.rstrip("/#"))[-1]
    return _SEPARATORS.sub("_", code.strip()).lower()


@lru_cache(maxsize=1_024)
def code_words(code: str) -> str:
    """``INSUFFICIENT_CREDITS``, ``insufficientCredits`` and ``…#insufficient-credits`` as ``insufficient credits``."""
    if "://" in code:
        code = re.split(r"[/#]", code.rstrip("/#"))[-1]
    return _SEPARATORS.sub(" ", _CAMEL.sub(" ", code.replace("_", " "))).lower()


def without_echoes(sentence: str) -> str:
    """The sentence without a prompt that it quotes."""
    if not any(mark in sentence for mark in _QUOTES):
        return sentence
    return _ECHOED.sub(r"\1", sentence)


def find_structure(text: str) -> tuple[int, object]:
    """Where JSON (or the repr of a dict) begins in a text, and what it says; (0, None) when there is none."""
    start = 0 if text[:1] == "[" else text.find("{", 0, LONGEST_PREFIX)
    if start < 0:
        return 0, None
    end = max(text.rfind("}"), text.rfind("]"))
    inner = text[start : end + 1]
    # an escape that Python does not know makes its parser warn
    is_repr = len(inner) <= LONGEST_REPR and _ODD_ESCAPE.search(inner) is None
    for parse in (json.loads, ast.literal_eval) if is_repr else (json.loads,):
        try:
            parsed = parse(inner)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(parsed, dict | list):
            return start, parsed
    return 0, None
