"""What a failure says about itself: status, codes and sentences, taken from any exception, response or body.

Sentences are taken from the fields that carry messages and never from those that repeat the request, so that a prompt
about "insufficient credits" is not taken for an answer about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from agentcredits.media import retry_times
from agentcredits.media.reading import (
    ATTRIBUTES,
    ECHOING,
    PAGE_TITLE,
    SPEAKING,
    STATUS_IN_TEXT,
    STATUS_NAMES,
    about_class,
    as_status,
    code_words,
    entries,
    find_structure,
    normal_code,
    own_names,
    plain_name,
    read,
    shows_failure,
    without_echoes,
)

#: Bounds on what is read: a hostile or huge answer costs no more than a large ordinary one.
MOST_NODES: Final = 200
MOST_DEPTH: Final = 8
MOST_SENTENCES: Final = 12
LONGEST_SENTENCE: Final = 600
LONGEST_TEXT: Final = 65_536
LONGEST_CODE: Final = 80


class Evidence(NamedTuple):
    """What one exception, response, body or value says.

    ``words`` is lower case, ``_`` a space: every sentence, then every code as words, so that one pattern finds
    ``insufficient credits`` and ``INSUFFICIENT_CREDITS`` alike. ``fields`` are those of ``retry_times.FIELDS``.
    """

    status: int | None = None
    codes: tuple[str, ...] = ()
    words: str = ""
    message: str = ""
    kinds: frozenset[str] = frozenset()
    module: str = ""
    host: str = ""
    headers: Mapping[str, str] = MappingProxyType({})
    fields: tuple[tuple[str, object], ...] = ()
    unreadable: bool = False

    @property
    def structured(self) -> bool:
        """Whether there is more than a bare sentence."""
        return self.status is not None or bool(self.codes)

    @property
    def empty(self) -> bool:
        """Whether nothing was found at all."""
        return not (self.structured or self.words or self.kinds or self.unreadable)


class Collector:
    """Gathers evidence from several places into one ``Evidence``; the first status wins."""

    def __init__(self, status: object = None, headers: object = None) -> None:
        self.status = as_status(status)
        self.codes: list[str] = []
        self.sentences: list[str] = []
        self.fields: list[tuple[str, object]] = []
        self.headers: dict[str, str] = {}
        self.kinds: frozenset[str] = frozenset()
        self.module = ""
        self.host = ""
        self.unreadable = False
        self._nodes = 0
        self.add_headers(headers)

    def build(self) -> Evidence:
        """What was gathered."""
        spoken = [without_echoes(sentence).replace("_", " ").lower() for sentence in self.sentences]
        spoken += [code_words(code) for code in self.codes]
        return Evidence(
            status=self.status,
            codes=tuple(dict.fromkeys([normal_code(code) for code in self.codes])),
            words=" | ".join(spoken),
            message=" · ".join(dict.fromkeys(self.sentences)),
            kinds=self.kinds,
            module=self.module,
            host=self.host,
            headers=self.headers,
            fields=tuple(self.fields),
            unreadable=self.unreadable,
        )

    # -- exceptions ----------------------------------------------------------------------------------------------

    def add_exception(self, error: BaseException) -> None:
        """Everything that one exception carries; its causes are not followed here."""
        # mypy takes the __hash__ of the instances for that of the class
        self.kinds, self.module, of_class = about_class(type(error))  # type: ignore[arg-type]
        names = of_class | own_names(error)
        present = {name: read(error, name) for name in ATTRIBUTES if name in names} if names else {}
        if present:
            self._add_attributes(present)
        if "RpcError" in self.kinds:
            self._add_grpc(error)
        if not self.sentences:
            self._add_own_words(present, read(error, "args"))

    def _add_attributes(self, present: Mapping[str, object]) -> None:
        for name in ("status_code", "http_status", "status", "code"):
            self._add_status_or_code(present.get(name))
        for name in ("type", "error_type", "error_code", "reason"):
            self._add_spoken(present.get(name))
        for name in ("body", "details", "error", "errors"):
            self._add_container(present.get(name))
        response = present.get("response")
        if isinstance(response, Mapping):
            self._walk(response, depth=0, strict=False)
        elif response is not None:
            self.add_response(response, read_body=not self.sentences)
        self.add_headers(present.get("headers"))
        self.add_headers(present.get("response_headers"))
        if not self.host:
            asked = read(present.get("request"), "url")
            self._note_host(asked or read(present.get("request_info"), "real_url"))

    def _add_own_words(self, present: Mapping[str, object], arguments: object) -> None:
        """The exception's own message: it may repeat the request, so it is read only when nothing else spoke."""
        for name in ("server_message", "title", "detail", "message"):
            if name in present:
                self._add_container(present[name])
        if not self.sentences and isinstance(arguments, tuple) and arguments:
            self._add_container(arguments[0])

    def _add_grpc(self, error: BaseException) -> None:
        """A gRPC error answers by methods."""
        for name in ("code", "details"):
            method = read(error, name)
            try:
                value = method() if callable(method) else None
            except Exception:  # noqa: BLE001  # whatever a client does, classifying must go on
                value = None
            self._add_spoken(value if isinstance(value, str) else read(value, "name"))

    # -- responses and bodies ------------------------------------------------------------------------------------

    def add_response(self, response: object, *, read_body: bool = True) -> None:
        """A client's response object: status, headers, address, and the body if it was already read."""
        if self.status is None:
            self.status = as_status(read(response, "status_code")) or as_status(read(response, "status"))
        self.add_headers(read(response, "headers"))
        self._note_host(read(response, "url"))
        # requests would fetch the rest of a streamed body now, from the network
        if read_body and read(response, "_content") is not False:
            content = read(response, "content")
            self.add_body(content if isinstance(content, str | bytes) else read(response, "text"))

    def add_body(self, body: object) -> None:
        """The body of an answer: parsed or not. With a status below 400 only what is marked as a fault counts."""
        strict = self.status is not None and self.status < 400
        if isinstance(body, str | bytes | bytearray | memoryview):
            self.add_text(body, strict=strict)
        elif body is not None:
            self._walk(body, depth=0, strict=strict)

    def add_value(self, value: object) -> None:
        """What a call returned: only what is marked as a fault counts, so a product is never taken for one."""
        if isinstance(value, str | bytes | bytearray | memoryview):
            self.add_text(value, strict=True)
        elif as_status(read(value, "status_code")) is not None and not isinstance(value, Mapping):
            status = as_status(read(value, "status_code"))
            inner = Collector(status)
            inner.add_response(value)
            if (status or 0) >= 400 or inner.sentences or inner.codes or inner.unreadable:
                self._take(inner)
        else:
            self._walk(value, depth=0, strict=True)

    def add_headers(self, headers: object) -> None:
        """Keeps the headers that say when to come back, and those that name an error."""
        try:
            pairs = list(headers.items())[:200] if hasattr(headers, "items") else []
        except Exception:  # noqa: BLE001  # hostile headers are no headers
            return
        for name, value in pairs:
            if not isinstance(name, str) or not isinstance(value, str | int | float):
                continue
            lowered = name.lower()
            if lowered in retry_times.HEADERS:
                self.headers[lowered] = str(value)[:100]
            elif lowered in ("x-fal-error-type", "x-amzn-errortype"):
                self._add_spoken(str(value))

    def add_text(self, text: str | bytes | bytearray | memoryview, *, strict: bool = False) -> None:
        """A text that may be JSON, hold JSON or a repr after some words, be a page, or be just a sentence."""
        if not isinstance(text, str):
            text = bytes(text[:LONGEST_TEXT]).decode("utf-8", "replace")
        text = text[:LONGEST_TEXT].strip()
        start, parsed = find_structure(text)
        if parsed is not None:
            if not strict:
                self._add_plain(text[:start])
            self._walk(parsed, depth=0, strict=strict)
        elif text.startswith("<") and not text.lower().startswith("<response"):
            self.unreadable = True
            title = PAGE_TITLE.search(text)
            if title is not None and not strict:
                self._add_plain(title[1])
        elif strict:
            # a sentence is a product (a caption, a link) as well as a fault: only the status can tell
            self.unreadable = bool(text) and self.status is not None
        else:
            self._add_plain(text)

    def _add_plain(self, text: str) -> None:
        text = text.strip()
        if not text:
            return
        if self.status is None and ("4" in text or "5" in text):
            found = STATUS_IN_TEXT.search(text[:LONGEST_SENTENCE])
            self.status = int(found[1]) if found else None
        self._add_spoken(text)

    # -- parsed structures ---------------------------------------------------------------------------------------

    def _add_container(self, value: object) -> None:
        if isinstance(value, Mapping | list | tuple):
            self._walk(value, depth=0, strict=False)
        elif isinstance(value, str | bytes):
            self.add_text(value)

    def _walk(self, node: object, *, depth: int, strict: bool) -> None:
        """Take the speaking fields of a nested structure; with ``strict`` only of objects that say they failed."""
        self._nodes += 1
        if depth > MOST_DEPTH or self._nodes > MOST_NODES:
            return
        if isinstance(node, list | tuple):
            for item in node[:20]:
                if isinstance(item, str):
                    if not strict:
                        self._add_spoken(item)
                else:
                    self._walk(item, depth=depth + 1, strict=strict)
            return
        named = [(plain_name(name), value) for name, value in entries(node)]
        speaks = not strict or shows_failure(named)
        for name, value in named:
            if name in retry_times.FIELDS:
                self.fields.append((name, value))
            elif name in ECHOING:
                continue
            elif isinstance(value, str | int | float) or value is None:
                if speaks and name in SPEAKING:
                    self._add_field(name, value)
            elif not isinstance(value, bytes | bytearray):
                self._walk(value, depth=depth + 1, strict=not (speaks and name in SPEAKING) and strict)

    def _add_field(self, name: str, value: object) -> None:
        if name in STATUS_NAMES:
            self._add_status_or_code(value)
        elif isinstance(value, str):
            self._add_spoken(value)

    def _add_status_or_code(self, value: object) -> None:
        status = as_status(value)
        if status is not None and status >= 400:
            self.status = self.status or status
        elif isinstance(value, int) and not isinstance(value, bool):
            if value and not 100 <= value < 400:
                self.codes.append(str(value))
        else:
            self._add_spoken(value)

    def _add_spoken(self, value: object) -> None:
        """A code when it is one short word, else a sentence."""
        if not isinstance(value, str) or not value:
            return
        if value[0] in "{[" and self._add_nested(value):
            return
        if len(value) <= LONGEST_CODE and value.isascii() and not any(mark in value for mark in " \n\t"):
            if len(self.codes) < MOST_SENTENCES:
                self.codes.append(value)
        else:
            self._add_sentence(value)

    def _add_nested(self, text: str) -> bool:
        """A message that is itself JSON."""
        self._nodes += 20
        _, parsed = find_structure(text[:LONGEST_TEXT]) if self._nodes <= MOST_NODES else (0, None)
        if parsed is None:
            return False
        self._walk(parsed, depth=2, strict=False)
        return True

    def _add_sentence(self, text: str) -> None:
        if len(self.sentences) < MOST_SENTENCES:
            self.sentences.append(text[:LONGEST_SENTENCE])

    def _note_host(self, url: object) -> None:
        if not self.host and url is not None:
            try:
                self.host = str(url).partition("://")[2].partition("/")[0].rpartition("@")[2].lower()[:200]
            except Exception:  # noqa: BLE001  # an address that cannot be read names no provider
                self.host = ""

    def _take(self, other: Collector) -> None:
        self.status = self.status if self.status is not None else other.status
        self.codes += other.codes
        self.sentences += other.sentences
        self.fields += other.fields
        self.headers |= other.headers
        self.host = self.host or other.host
        self.unreadable = self.unreadable or other.unreadable


def exception_evidence(error: BaseException, status: object = None, headers: object = None) -> Evidence:
    """The evidence of one exception (its causes are not followed), and what else is known of the same answer."""
    collector = Collector(status, headers)
    collector.add_exception(error)
    return collector.build()
