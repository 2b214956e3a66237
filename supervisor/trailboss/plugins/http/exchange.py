"""THE EXCHANGE: the innermost handler. One request to a worker, its answer, checked, to the client.

    request -> context and body -> pool.submit -> parts and outcome -> responder

Whatever happens, the responder is answered once, files that were uploaded are removed once, and the worker's answer
reaches the client whole or visibly cut. A GET or HEAD whose worker died before anything was sent goes to another
worker, once. When the client has gone, a request that waits is withdrawn, a stream is told to stop, and a worker that
is still thinking finishes within its limits, or within `stream_timeout` with `on_disconnect: stop`.

A plain GET takes the short way: context from remembered pieces, one submit, one checked head, one write.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from trailboss.config.schema import HttpConfig
from trailboss.log import logger
from trailboss.plugins.http.answer import (
    EMPTY_HEAD,
    AnswerHead,
    BadAnswer,
    check_length,
    has_no_body,
    parse_head,
    parse_trailers,
)
from trailboss.plugins.http.context import ContextWriter
from trailboss.plugins.http.forms import (
    EMPTY_TREE,
    MULTIPART,
    URLENCODED,
    URLENCODED_LENGTH_MAX,
    FormRefused,
    MultipartForm,
    form_kind,
    parse_urlencoded,
)
from trailboss.plugins.http.message import Request, Responder
from trailboss.plugins.http.refusals import Refusals
from trailboss.plugins.http.uploads import Owner, UploadRules, Uploads
from trailboss.reactor import Reactor
from trailboss.workers.lane import SMALL_PAYLOAD_MAX, FileBody, OnOutcome, OnPart, Ticket
from trailboss.workers.outcome import (
    Answer,
    ExecTimeout,
    Outcome,
    PoolClosed,
    PoolDegraded,
    Quarantined,
    QueueFull,
    QueueTimeout,
    SoftError,
    WorkerDied,
)
from trailboss_worker.protocol.frames import JSON, PROTO

__all__ = ["Exchange", "PoolLike", "Refusal", "refusal_of"]

log = logger("http")

FORM_SLICE: Final = 64 * 1024
"""Bytes of a multipart form that are read in one turn of the reactor; at worst they take some 15 ms."""

INTERIM_MAX: Final = 64
"""Interim answers to one request; nothing holds back a worker that sends them for ever."""

LABEL_PATH_MAX: Final = 200
"""Characters of a path that are shown to people."""

_WITH_FORM_BODY: Final = ("POST", "PUT", "PATCH")
_BODY_IGNORED: Final = ("HEAD", "OPTIONS")
_RETRIED: Final = ("GET", "HEAD")


class PoolLike(Protocol):
    """What an exchange needs of a pool."""

    debug: bool

    def submit(
        self,
        context: bytes,
        body: Any,
        flags: int,
        on_outcome: OnOutcome,
        label: str,
        on_part: OnPart,
    ) -> Ticket | None:
        """Give one payload to a worker. `body` is bytes or a FileBody; stand-ins may know bytes alone."""


class Refusal:
    """What the client is told when there is no answer of a worker."""

    __slots__ = ("close", "reason", "retry_after", "status")

    def __init__(
        self, status: int, reason: str, retry_after: int | None = None, *, close: bool = False
    ) -> None:
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.close = close


def refusal_of(error: Exception, internal_error_code: int) -> Refusal:
    """Status and reason for an exec that ended without an answer.

    A code other than 500 was chosen by the user, who wants to see it instead of all the others.
    """
    refusal = Refusal(500, "internal error")
    for kind, candidate in _REFUSALS:
        if isinstance(error, kind):
            refusal = candidate
            break
    if internal_error_code != 500:
        return Refusal(internal_error_code, refusal.reason, refusal.retry_after, close=refusal.close)
    return refusal


_REFUSALS: Final[tuple[tuple[type[Exception], Refusal], ...]] = (
    (SoftError, Refusal(500, "worker error")),
    (QueueFull, Refusal(503, "queue full", 1)),
    (QueueTimeout, Refusal(503, "queue timeout", 1)),
    (PoolDegraded, Refusal(503, "no workers", 1)),
    (Quarantined, Refusal(503, "quarantined")),
    (PoolClosed, Refusal(503, "draining", 1, close=True)),
    (ExecTimeout, Refusal(504, "exec timeout")),
    (WorkerDied, Refusal(502, "worker died")),
    (BadAnswer, Refusal(502, "bad answer")),
)


class Exchange:
    """The handler behind all middleware; see the module's text. `owner` gets uploaded files, `reactor` long forms.

    `raw_body` overrides the configuration: applications in Python parse forms themselves.
    """

    def __init__(
        self,
        pool: PoolLike,
        config: HttpConfig,
        reactor: Reactor | None = None,
        *,
        owner: Owner | None = None,
        raw_body: bool | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self.pool = pool
        self.reactor = reactor
        self.refusals = refusals
        self.raw_body = config.raw_body if raw_body is None else raw_body
        self.flags = PROTO if config.codec == "proto" else JSON
        self.writer = ContextWriter(
            underscores=config.headers.underscores == "allow", forms=not self.raw_body
        )
        self.upload_rules = UploadRules(config.uploads, owner)
        #: Errors are shown in the browser.
        self.dev = config.dev
        self.follow(config)

    def follow(self, config: HttpConfig) -> None:
        """Take in what may change while requests are under way."""
        self.internal_error_code = config.internal_error_code
        self.retry = config.retry
        self.stop_on_disconnect = config.on_disconnect == "stop"
        self.stream_timeout = config.pool.stream_timeout

    def context_of(self, request: Request) -> bytes:
        """Return the context of a request without a body, in the dialect of the workers."""
        write = self.writer.proto if self.flags == PROTO else self.writer.json
        return write(request)

    def __call__(self, request: Request, responder: Responder) -> None:
        """Answer `request`, now or later."""
        conversation = _Conversation(self, request, responder)
        responder.on_gone = conversation.client_gone
        if self.flags == JSON:
            context = self.writer.plain_json(request)
            if context is not None:
                body = request.body
                if body.size == 0 or request.method in _BODY_IGNORED:
                    conversation.submit(context, b"")
                else:
                    conversation.submit_body(context)
                return
        try:
            conversation.begin()
        except Exception as error:
            conversation.contain(error)


class _Conversation:
    """One request on its way."""

    __slots__ = (
        "body",
        "context",
        "exchange",
        "finished",
        "head",
        "headless",
        "informed",
        "remaining",
        "request",
        "responder",
        "retried",
        "ticket",
        "uploads",
    )

    def __init__(self, exchange: Exchange, request: Request, responder: Responder) -> None:
        self.exchange = exchange
        self.request = request
        self.responder = responder
        self.context = b""
        self.body: bytes | FileBody = b""
        self.ticket: Ticket | None = None
        self.uploads: Uploads | None = None
        #: The head of a stream, once it is out.
        self.head: AnswerHead | None = None
        #: Bytes a stream still has to have, where it said how many.
        self.remaining: int | None = None
        #: Interim answers that were sent.
        self.informed = 0
        #: The interim status that somebody took for the head of a body; 0 where nobody has.
        self.headless = 0
        self.retried = False
        #: The responder has been answered, or its client has gone; nothing is said to it any more.
        self.finished = False

    # --- to the worker ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The long way: forms, unusual headers, the protobuf dialect."""
        request, exchange = self.request, self.exchange
        ignored = request.method in _BODY_IGNORED
        kind = ""
        if not exchange.raw_body and not ignored:
            kind = form_kind(request.header(b"content-type"))
        try:
            if kind == URLENCODED:
                self.submit(self._context(parsed=True), self._read_urlencoded())
            elif kind == MULTIPART:
                self._read_multipart()
            elif ignored or request.body.size == 0:
                self.submit(self._context(), b"")
            else:
                self.submit_body(self._context())
        except FormRefused as error:
            self._refuse_form(error)
        except OSError as error:
            self._spool_failed(error)

    def _context(self, *, parsed: bool = False, uploads: bytes = b"") -> bytes:
        writer = self.exchange.writer
        write = writer.proto if self.exchange.flags == PROTO else writer.json
        return write(self.request, parsed=parsed, uploads=uploads)

    def _read_urlencoded(self) -> bytes:
        """The tree of the form. One that is too long is not even read back into memory. Raises FormRefused, OSError."""
        request = self.request
        if request.method not in _WITH_FORM_BODY:
            return EMPTY_TREE
        if request.body.size > URLENCODED_LENGTH_MAX:
            raise FormRefused(413, f"a form of more than {URLENCODED_LENGTH_MAX} bytes")
        return parse_urlencoded(request.body.bytes())

    def _read_multipart(self) -> None:
        body, reactor = self.request.body, self.exchange.reactor
        self.uploads = uploads = Uploads(self.exchange.upload_rules)
        form = MultipartForm(self.request.header(b"content-type") or b"", uploads.open)
        if body.size <= FORM_SLICE or reactor is None:
            form.feed(body.bytes())
            self._submit_multipart(form, uploads)
        else:
            self._read_slice(form, uploads, 0, reactor.call_soon)

    def _read_slice(
        self,
        form: MultipartForm,
        uploads: Uploads,
        offset: int,
        call_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        """Read the next piece of a long form, then let others have their turn."""
        body = self.request.body
        if self.finished:
            self._clean_up()
            return
        try:
            if body.file is None:
                piece = body.bytes()[offset : offset + FORM_SLICE]
            else:
                piece = os.pread(body.file, min(FORM_SLICE, body.size - offset), offset)
            form.feed(piece)
            offset += len(piece)
            if offset >= body.size or not piece:
                self._submit_multipart(form, uploads)
            else:
                call_soon(lambda: self._read_slice(form, uploads, offset, call_soon))
        except FormRefused as error:
            self._refuse_form(error)
        except OSError as error:
            self._spool_failed(error)
        except Exception as error:
            self.contain(error)

    def _submit_multipart(self, form: MultipartForm, uploads: Uploads) -> None:
        tree = form.finish()
        self.submit(self._context(parsed=True, uploads=uploads.tree()), tree)

    def submit_body(self, context: bytes) -> None:
        """Submit with the request's own body; a long one in a file is not read into memory."""
        source = self.request.body
        body: bytes | FileBody
        try:
            if source.file is not None and source.size > SMALL_PAYLOAD_MAX:
                body = FileBody(source.file, source.size)
            else:
                body = source.bytes()
        except OSError as error:
            self._spool_failed(error)
            return
        self.submit(context, body)

    def submit(self, context: bytes, body: bytes | FileBody) -> None:
        """Give it to the pool."""
        exchange, request = self.exchange, self.request
        self.context = context
        self.body = body
        path = request.path
        if len(path) > LABEL_PATH_MAX:
            path = path[:LABEL_PATH_MAX] + "..."
        ticket = exchange.pool.submit(
            context, body, exchange.flags, self.on_outcome, f"{request.method} {path}", self.on_part
        )
        if not self.finished:  # it may have been refused at once
            self.ticket = ticket

    def client_gone(self) -> None:
        """Responder: nobody reads the answer any more."""
        self.finished = True
        self._cancel()

    def _cancel(self) -> None:
        ticket = self.ticket
        if ticket is not None:
            seconds = self.exchange.stream_timeout
            ticket.cancel_stream(seconds)
            if self.exchange.stop_on_disconnect:
                ticket.kill_after(seconds)

    # --- from the worker --------------------------------------------------------------------------------------------

    def on_outcome(self, outcome: Outcome) -> None:
        """Pool: the last word on this request."""
        self.ticket = None  # which refers to this: without a cycle the memory is free at once
        try:
            if self.finished:
                self._clean_up()
            elif self.head is not None:
                self._end_stream(outcome)
                self._clean_up()
            elif isinstance(outcome, Answer):
                flags, context, body = outcome
                try:
                    head = parse_head(context, flags) if context else self._no_head()
                    if head.plain and self.request.method != "HEAD":
                        if head.length is not None and head.length != len(body):
                            check_length(head, len(body))
                        responder = self.responder  # `_hand_over`, without the call
                        self.finished = True
                        responder.on_gone = None  # `on_ready` is set by streams alone
                        responder.respond(head.status, head.headers, body)
                    else:
                        self._respond(head, body)
                except BadAnswer as error:
                    self._refuse_answer(error)
                if self.uploads is not None or type(self.body) is FileBody:
                    self._clean_up()
            elif self._may_retry(outcome):
                self.retried = True
                self.submit(self.context, self.body)
            else:
                self._fail(outcome)
                self._clean_up()
        except Exception as error:
            self.contain(error)

    def _respond(self, head: AnswerHead, body: bytes) -> None:
        """A whole answer of the less usual kind. Raises BadAnswer."""
        status, method = head.status, self.request.method
        if status < 200:
            raise BadAnswer(f"the interim status {status} as the whole answer")
        if method == "HEAD" and status not in (204, 304):
            responder = self._hand_over()
            if head.length is None and body:
                responder.respond(status, head.headers, body)
            else:
                responder.head(status, head.headers, length=head.length)
                responder.end()
            return
        if has_no_body(status, method) or status == 205:
            self._hand_over().respond(status, head.headers, b"")
            return
        check_length(head, len(body))
        responder = self._hand_over()
        responder.head(status, head.headers)
        if body:
            responder.data(body)
        responder.end(head.trailers)

    def on_part(self, flags: int, context: bytes, body: bytes) -> bool:
        """Pool: one frame of a stream. False while the client takes no more."""
        if self.finished:
            return True
        try:
            if self.head is None:
                try:
                    head = parse_head(context, flags) if context else self._no_head()
                    if not self._begin_stream(head, len(body)):
                        return True
                except BadAnswer as error:
                    self._refuse_answer(error)
                    self._cancel()
                    return True
            return self._send(body)
        except Exception as error:
            self._give_up(error)
            self._cancel()
            return True

    def _no_head(self) -> AnswerHead:
        """A body alone is 200, unless its worker believes that it has said something else. Raises BadAnswer."""
        if self.headless:
            raise BadAnswer(f"the interim status {self.headless} as the head of a body")
        return EMPTY_HEAD

    def _begin_stream(self, head: AnswerHead, size: int) -> bool:
        """Send an interim answer or the head; True if its body follows. Raises BadAnswer."""
        responder = self.responder
        status = head.status
        if status < 200:
            if status == 101 or size:
                self.headless = status
            if status != 101:
                self.informed += 1
                if self.informed > INTERIM_MAX:
                    raise BadAnswer(f"more than {INTERIM_MAX} interim answers to one request")
                responder.inform(status, head.headers)
            return False
        if has_no_body(status, self.request.method) or status == 205:
            # The head says everything; the worker need not make up the rest.
            self._respond(head, b"")
            self._cancel()
            return False
        if head.length is not None and size > head.length:
            raise BadAnswer(f"Content-Length is {head.length}, but the body has at least {size} bytes")
        self.head = head
        self.remaining = head.length if not head.trailer_names else None
        if self.ticket is not None:
            responder.on_ready = self.ticket.resume
        responder.head(status, head.headers, length=self.remaining)
        return True

    def _send(self, body: bytes) -> bool:
        responder = self.responder
        if body:
            if self.remaining is not None:
                self.remaining -= len(body)
                if self.remaining < 0:
                    self._cut(
                        f"a stream longer than its Content-Length of {self.head.length if self.head else 0}"
                    )
                    self._cancel()
                    return True
            responder.data(body)
        if responder.finished:
            # It has ended the answer on its own account, and nobody would ask for more.
            self._hand_over()
            self._cancel()
            return True
        return responder.wants_more

    def _end_stream(self, outcome: Outcome) -> None:
        head = self.head
        if head is None:
            return
        if not isinstance(outcome, Answer):
            self._cut(f"a stream that broke off: {outcome}")
            return
        flags, context, body = outcome
        self._send(body)
        if self.finished:
            return
        if self.remaining:
            self._cut(f"a stream that ended {self.remaining} bytes before its Content-Length")
            return
        try:
            trailers = (
                parse_trailers(context, flags, head.trailer_names, head.trailers)
                if head.trailer_names
                else ()
            )
        except BadAnswer as error:
            self._cut(str(error))
            return
        self._hand_over().end(trailers)

    # --- without an answer ------------------------------------------------------------------------------------------

    def _may_retry(self, outcome: Outcome) -> bool:
        return (
            isinstance(outcome, WorkerDied)
            and self.exchange.retry
            and not self.retried
            and not self.informed
            and not self.responder.started
            and self.request.method in _RETRIED
        )

    def _fail(self, error: Exception) -> None:
        """The exec ended without an answer, and nothing but an interim one was sent."""
        exchange = self.exchange
        refusal = refusal_of(error, exchange.internal_error_code)
        self._note(refusal.status, refusal.reason, error)
        if isinstance(error, SoftError):
            self._log("the worker reported an error", str(error))
            if not exchange.pool.debug and not exchange.dev and not self.responder.started:
                # The application's own failure: no text of ours stands in for its page.
                self._hand_over().respond(refusal.status, [(b"trailboss-reason", b"worker error")], b"")
                return
        self._refuse(refusal, error)

    def _refuse_answer(self, error: BadAnswer) -> None:
        self._log("bad answer from a worker", str(error))
        refusal = refusal_of(error, self.exchange.internal_error_code)
        self._note(refusal.status, refusal.reason, error)
        self._refuse(refusal, error)

    def _refuse(self, refusal: Refusal, error: Exception) -> None:
        """Answer with the reason; in a pool for debugging with everything that is known."""
        responder = self._hand_over()
        if self.exchange.dev and not responder.started:
            self._show(responder, refusal, error)
            return
        if not self.exchange.pool.debug or responder.started:
            responder.fail(
                refusal.status, refusal.reason, retry_after=refusal.retry_after, close=refusal.close
            )
            return
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"trailboss-reason", refusal.reason.encode()),
        ]
        if refusal.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % refusal.retry_after))
        responder.respond(refusal.status, headers, str(error).encode("utf-8", "replace"))

    def _show(self, responder: Responder, refusal: Refusal, error: Exception) -> None:
        """Development mode: a page for the browser with what went wrong, and what the worker said at last."""
        from trailboss_worker.error_page import CONTENT_TYPE, page_of_text

        request = self.request
        output = error.output if isinstance(error, WorkerDied) else ()
        text = "\n".join([str(error), *(("", *output) if output else ())])
        body = page_of_text(f"{refusal.status}: {refusal.reason}", f"{request.method} {request.target}", text)
        headers = [
            (b"Content-Type", CONTENT_TYPE.encode()),
            (b"Cache-Control", b"no-store"),
            (b"trailboss-reason", refusal.reason.encode()),
        ]
        responder.respond(refusal.status, headers, body)

    def _refuse_form(self, error: FormRefused) -> None:
        self._note(error.status, str(error))
        self._hand_over().fail(error.status, str(error))
        self._clean_up()

    def _spool_failed(self, error: OSError) -> None:
        self._log("a request's body could not be read back", str(error))
        self._note(self.exchange.internal_error_code, "internal error", error)
        self._hand_over().fail(self.exchange.internal_error_code, "internal error")
        self._clean_up()

    def _note(self, status: int, reason: str, error: Exception | None = None) -> None:
        """Keep for `trailboss why --http` that the server answers this itself."""
        refusals = self.exchange.refusals
        if refusals is not None:
            request = self.request
            refusals.add(status, reason, request.method, request.path, str(error) if error else "")

    def contain(self, error: Exception) -> None:
        """A mistake of ours, or of a middleware, costs this request and nothing else."""
        self._give_up(error)
        self._cancel()
        self._clean_up()

    def _give_up(self, error: Exception) -> None:
        request, responder = self.request, self.responder
        log.error(
            "a request failed inside the server",
            method=request.method,
            path=request.path[:LABEL_PATH_MAX],
            exc_info=error,
        )
        try:
            self._hand_over()
            if not responder.finished:
                responder.fail(self.exchange.internal_error_code, "internal error")
        except Exception as second:
            log.error(
                "a failed request could not be answered", path=request.path[:LABEL_PATH_MAX], exc_info=second
            )
            with suppress(Exception):
                responder.abort()

    def _cut(self, text: str) -> None:
        """What was sent is not whole, and the client must see that."""
        self._log("answer cut short", text)
        self._hand_over().abort()

    def _log(self, event: str, text: str) -> None:
        request = self.request
        log.error(event, text=text, method=request.method, path=request.path[:LABEL_PATH_MAX])

    # --- the end ----------------------------------------------------------------------------------------------------

    def _hand_over(self) -> Responder:
        """The responder, for its last call: during that it may begin with the next request already."""
        responder = self.responder
        self.finished = True
        responder.on_gone = None
        responder.on_ready = None
        return responder

    def _clean_up(self) -> None:
        """Nothing comes from the worker any more: its files are removed."""
        uploads = self.uploads
        if uploads is not None:
            self.uploads = None
            uploads.remove()
        if type(self.body) is FileBody:
            self.body.close()
