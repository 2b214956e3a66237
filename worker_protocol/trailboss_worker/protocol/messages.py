"""The protobuf messages that a worker reads or writes, as tables for `protobuf_lite`.

Names, numbers and types are those of wire protocol 6 and 3.1.2; the supervisor has the same messages as
generated classes, and tests compare the two. An `http.v1` header value is bytes, because a header need not be
UTF-8; in early versions it was declared as text, which looks the same on the wire.
"""

from __future__ import annotations

from trailboss_worker.protocol.protobuf_lite import Field, Message

# http.v1
HTTP_HEADER_VALUE = Message("http.v1.HeaderValue", Field(1, "value", "bytes", repeated=True))
HTTP_REQUEST = Message(
    "http.v1.Request",
    Field(1, "remote_addr", "string"),
    Field(2, "protocol", "string"),
    Field(3, "method", "string"),
    Field(4, "uri", "string"),
    Field(5, "header", "map", message=HTTP_HEADER_VALUE),
    Field(6, "cookies", "map", message=HTTP_HEADER_VALUE),
    Field(7, "raw_query", "string"),
    Field(8, "parsed", "bool"),
    Field(9, "uploads", "bytes"),
    Field(10, "attributes", "map", message=HTTP_HEADER_VALUE),
)
HTTP_RESPONSE = Message(
    "http.v1.Response",
    Field(1, "status", "int64"),
    Field(2, "headers", "map", message=HTTP_HEADER_VALUE),
)

# jobs.v1
JOBS_HEADER_VALUE = Message("jobs.v1.HeaderValue", Field(1, "value", "string", repeated=True))
JOBS_OPTIONS = Message(
    "jobs.v1.Options",
    Field(1, "priority", "int64"),
    Field(2, "pipeline", "string"),
    Field(3, "delay", "int64"),
    Field(6, "auto_ack", "bool"),
    Field(7, "topic", "string"),
    Field(8, "metadata", "string"),
    Field(9, "offset", "int64"),
    Field(10, "partition", "int32"),
)
JOBS_JOB = Message(
    "jobs.v1.Job",
    Field(1, "job", "string"),
    Field(2, "id", "string"),
    Field(3, "payload", "bytes"),
    Field(4, "headers", "map", message=JOBS_HEADER_VALUE),
    Field(5, "options", "message", message=JOBS_OPTIONS),
)
JOBS_PUSH_REQUEST = Message("jobs.v1.PushRequest", Field(1, "job", "message", message=JOBS_JOB))
JOBS_PUSH_BATCH_REQUEST = Message(
    "jobs.v1.PushBatchRequest", Field(1, "jobs", "message", repeated=True, message=JOBS_JOB)
)
JOBS_DECLARE_REQUEST = Message("jobs.v1.DeclareRequest", Field(1, "pipeline", "map"))
JOBS_PIPELINES = Message("jobs.v1.Pipelines", Field(1, "pipelines", "string", repeated=True))
JOBS_EMPTY = Message("jobs.v1.Empty")
JOBS_STAT = Message(
    "jobs.v1.Stat",
    Field(1, "pipeline", "string"),
    Field(2, "driver", "string"),
    Field(3, "queue", "string"),
    Field(4, "active", "int64"),
    Field(5, "delayed", "int64"),
    Field(6, "reserved", "int64"),
    Field(7, "ready", "bool"),
    Field(8, "priority", "uint64"),
)
JOBS_STATS = Message("jobs.v1.Stats", Field(1, "stats", "message", repeated=True, message=JOBS_STAT))

# common.v1, with the one message of google.protobuf that it uses
ANY = Message("google.protobuf.Any", Field(1, "type_url", "string"), Field(2, "value", "bytes"))
COMMON_STATUS = Message(
    "common.v1.Status",
    Field(1, "code", "int32"),
    Field(2, "message", "string"),
    Field(3, "details", "message", repeated=True, message=ANY),
)

# status.v1
STATUS_REQUEST = Message("status.v1.Request", Field(1, "plugin", "string"))
STATUS_RESPONSE = Message("status.v1.Response", Field(1, "code", "int64"), Field(2, "message", "string"))

# applogger.v1
APPLOGGER_LOG_ATTRS = Message("applogger.v1.LogAttrs", Field(1, "key", "string"), Field(2, "value", "string"))
APPLOGGER_LOG_ENTRY = Message(
    "applogger.v1.LogEntry",
    Field(1, "message", "string"),
    Field(2, "log_attrs", "message", repeated=True, message=APPLOGGER_LOG_ATTRS),
)
APPLOGGER_RESPONSE = Message("applogger.v1.Response")
