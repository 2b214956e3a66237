"""The log of this process: structlog in front, one channel per plugin, targets behind.

`install` makes every `trailboss.log.logger` write through one LogSystem; it may be called again (the early log with
defaults, then the configured one). structlog keeps a logger's processors from its first use on, so the list that is
handed to it never changes: its one member looks up the system in force.

A channel takes what it does not say from the root section. A target (a path, stdout, stderr) is opened once, however
many channels name it, and everything is opened before the server starts, so a path that cannot be written is an error
then and not a silent log later.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields

import structlog

from trailboss.config.schema import FileLoggerConfig, LogChannelConfig, LogsConfig
from trailboss.plugins.logs.render import (
    LEVELS,
    Record,
    Renderer,
    render_console,
    render_json,
    render_raw,
)
from trailboss.plugins.logs.rotation import RotatingFile
from trailboss.plugins.logs.targets import FileOutput, Output, StreamOutput, Target

__all__ = ["LogSystem", "LogTargetError", "install"]

_METHOD_LEVELS = {
    "warning": "warn",
    "exception": "error",
    "critical": "panic",
    "fatal": "panic",
    "msg": "info",
}
_STREAMS = {"stdout": 1, "stderr": 2}
_FLUSH_AT_EXIT_SECONDS = 2.0
#: Levels as syslog numbers them.
_PRIORITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3, "panic": 2}


class LogTargetError(Exception):
    """A target of the log cannot be opened; the text names key, path and reason."""


@dataclass(slots=True)
class Channel:
    """How the records of one logger are treated."""

    level: int
    outputs: tuple[tuple[Target, Renderer], ...]
    line_ending: str

    def write(self, record: Record) -> None:
        """Hand one record to every target of the channel. Never blocks, never raises."""
        for target, render in self.outputs:
            text = f"{render(record)}{self.line_ending}"
            if target.is_journal:
                text = with_priority(text, record.level)
            target.offer(text.encode(errors="backslashreplace"))


class LogSystem:
    """Every channel and target of one configuration."""

    def __init__(self, config: LogsConfig) -> None:
        """Open every target. Raises LogTargetError."""
        self._config = config
        self._targets: dict[str, Target] = {}
        #: Beginnings of the lines of `log_encoded` in this millisecond.
        self._heads: dict[tuple[Renderer, str, str, object], str] = {}
        self._heads_milliseconds = 0
        try:
            self._root = self._make_channel(config, "logs")
            self._channels = {
                name: self._make_channel(inherit(config, channel), f"logs.channels.{name}")
                for name, channel in config.channels.items()
            }
        except LogTargetError:
            self.close(0.0)
            raise

    @property
    def dropped(self) -> int:
        """Lines lost so far over all targets."""
        return sum(target.dropped for target in self._targets.values())

    @property
    def errors(self) -> tuple[str, ...]:
        """What is wrong with targets now."""
        return tuple(target.error for target in self._targets.values() if target.error)

    def relevel(self, config: LogsConfig) -> None:
        """Take over the levels of `config`; channels and targets stay what they are."""
        self._root.level = LEVELS[config.level]
        for name, channel in self._channels.items():
            section = config.channels.get(name)
            self._channels[name].level = LEVELS[inherit(config, section).level] if section else channel.level

    def channel(self, name: str) -> Channel:
        """Return the channel of a logger."""
        return self._channels.get(name, self._root)

    def log(self, level: str, logger: str, message: object, values: Mapping[str, object]) -> None:
        """Write one record where its channel says. Never blocks, never raises."""
        channel = self.channel(logger)
        if LEVELS[level] >= channel.level and channel.outputs:
            channel.write(Record(time.time_ns(), level, logger, message, values))

    def log_encoded(self, level: str, logger: str, records: Sequence[tuple[str, str]]) -> None:
        """Write records of which the fields are one line of JSON in ASCII already: (message, fields), a message being
        a text of ours. Never blocks, never raises."""
        channel = self.channel(logger)
        if LEVELS[level] < channel.level:
            return
        now = time.time_ns()
        for target, render in channel.outputs:
            if render is render_json:
                head = f'{{"level":"{level}","ts":{now},"logger":"{logger}","msg":'
                lines = [f'{head}"{message}",{fields[1:]}' for message, fields in records]
            elif render is render_raw:
                lines = [message for message, _ in records]
            else:
                heads = {
                    message: self._head(render, Record(now, level, logger, message, {}))
                    for message in {message for message, _ in records}
                }
                lines = [f"{heads[message]}\t{fields}" for message, fields in records]
            ending = channel.line_ending
            if target.is_journal:
                lines = [with_priority(line, level) for line in lines]
            target.offer_many([f"{line}{ending}".encode() for line in lines])

    def _head(self, render: Renderer, record: Record) -> str:
        """A record without fields, rendered; within a millisecond, which is as far as its time goes, they are all alike."""
        milliseconds = record.time_ns // 1_000_000
        if milliseconds != self._heads_milliseconds:
            self._heads_milliseconds = milliseconds
            self._heads.clear()
        key = (render, record.level, record.logger, record.message)
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = render(record)
        return head

    def say(self, text: str) -> None:
        """Write one line to standard output as it is, whatever the log's mode. Never blocks."""
        self._stream("stdout").offer(f"{text}\n".encode(errors="backslashreplace"))

    def terminal(self) -> Target | None:
        """Return the target of standard error where that is a terminal, for a footer; None otherwise."""
        return self._stream("stderr") if os.isatty(2) else None

    def is_seen(self, level: str, logger: str) -> bool:
        """Whether records of a logger are read on standard error."""
        channel = self.channel(logger)
        shown = any(target is self._targets.get("stderr") for target, _ in channel.outputs)
        return shown and LEVELS[level] >= channel.level

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything logged so far is written; False when that took longer."""
        deadline = time.monotonic() + timeout_seconds
        late = [t for t in self._targets.values() if not t.flush(max(0.0, deadline - time.monotonic()))]
        return not late

    def close(self, timeout_seconds: float) -> bool:
        """Write out everything within `timeout_seconds` and end the threads; False when lines are lost."""
        deadline = time.monotonic() + timeout_seconds
        late = [t for t in self._targets.values() if not t.close(max(0.0, deadline - time.monotonic()))]
        return not late

    def _make_channel(self, config: LogsConfig, key: str) -> Channel:
        if config.mode in ("none", "off"):
            return Channel(LEVELS[config.level], (), "")
        options = config.file_logger_options
        if options is not None:
            file = self._rotating(options, f"{key}.file_logger_options.log_output")
            outputs: tuple[tuple[Target, Renderer], ...] = ((file, render_json),)
        else:
            outputs = tuple(
                (self._open(name, f"{key}.output"), renderer(config, name)) for name in config.output
            )
        return Channel(LEVELS[config.level], outputs, config.line_ending or "\n")

    def _open(self, name: str, key: str) -> Target:
        if name in _STREAMS:
            return self._stream(name)
        path = os.path.abspath(name)
        if path not in self._targets:
            try:
                self._targets[path] = self._target(path, FileOutput(path))
            except OSError as error:
                raise cannot_open(key, path, error) from error
        return self._targets[path]

    def _rotating(self, options: FileLoggerConfig, key: str) -> Target:
        path = os.path.abspath(options.log_output or os.path.join(tempfile.gettempdir(), "trailboss.log"))
        if path not in self._targets:
            try:
                output = RotatingFile(
                    path,
                    options.max_size * 1_048_576,
                    options.max_backups,
                    options.max_age,
                    options.compress,
                )
                self._targets[path] = self._target(path, output)
            except OSError as error:
                raise cannot_open(key, path, error) from error
        return self._targets[path]

    def _stream(self, name: str) -> Target:
        if name not in self._targets:
            self._targets[name] = self._target(name, StreamOutput(_STREAMS[name]))
            self._targets[name].is_journal = is_journal(_STREAMS[name], os.environ)
        return self._targets[name]

    def _target(self, name: str, output: Output) -> Target:
        return Target(name, output, dropped_line=self._dropped_line, on_error=self._report)

    def _dropped_line(self, count: int) -> bytes:
        record = Record(time.time_ns(), "warn", "logs", "log records were dropped", {"records": count})
        render = render_json if shows_json(self._config) else render_console
        return f"{render(record)}{self._config.line_ending or chr(10)}".encode()

    def _report(self, text: str) -> None:
        """Say on `err_output` that a target cannot be written; runs in that target's thread."""
        record = Record(time.time_ns(), "error", "logs", text, {})
        for name in self._config.err_output:
            target = self._targets.get(name if name in _STREAMS else os.path.abspath(name))
            if target is not None and not target.error:
                target.offer(f"{renderer(self._config, name)(record)}\n".encode())


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether a descriptor leads to the journal: systemd says device and inode of its stream in JOURNAL_STREAM."""
    told = environ.get("JOURNAL_STREAM", "")
    if not told:
        return False
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


def with_priority(text: str, level: str) -> str:
    """Begin every line with the priority that journald reads, as ``<6>``."""
    priority = f"<{_PRIORITIES.get(level, 6)}>"
    body = text.rstrip("\n")
    return priority + body.replace("\n", f"\n{priority}") + text[len(body) :]


def inherit(root: LogsConfig, channel: LogChannelConfig) -> LogsConfig:
    """Return the channel's configuration, with the root's value wherever the channel says nothing."""
    own = {
        item.name: getattr(channel, item.name)
        for item in fields(channel)
        if getattr(channel, item.name) is not None
    }
    if "output" in own and "file_logger_options" not in own:
        own["file_logger_options"] = None  # the root's file replaces the root's output, not the channel's
    kept = {
        name: getattr(root, name)
        for name in ("mode", "level", "encoding", "line_ending", "output", "err_output")
    }
    return LogsConfig(**{**kept, "file_logger_options": root.file_logger_options, **own})


def shows_json(config: LogsConfig) -> bool:
    """Say whether records are JSON: as `encoding` says, else in mode production."""
    return config.encoding == "json" or (not config.encoding and config.mode == "production")


def renderer(config: LogsConfig, output: str) -> Renderer:
    """Return what makes a line for `output`; colours only for a terminal whose user has not said NO_COLOR."""
    if config.mode == "raw":
        return render_raw
    if shows_json(config):
        return render_json
    fd = _STREAMS.get(output)
    if fd is not None and os.isatty(fd) and not os.environ.get("NO_COLOR"):
        return lambda record: render_console(record, colour=True)
    return render_console


def cannot_open(key: str, path: str, error: OSError) -> LogTargetError:
    """Return the one line for a target that cannot be opened."""
    return LogTargetError(
        f"{key}: cannot open {path}: {error.strerror or error}; give a path in a folder that exists and may be written"
    )


# --- structlog ------------------------------------------------------------------------------------------------------


class _Installed:
    """The system in force; one per process, because structlog's configuration is."""

    system: LogSystem | None = None


def install(config: LogsConfig) -> LogSystem:
    """Make every logger of this process write as `config` says, and return the system.

    An earlier system is written out and closed. Raises LogTargetError, in which case the earlier one stays in force.
    """
    system = LogSystem(config)
    earlier, _Installed.system = _Installed.system, system
    if earlier is None:
        atexit.register(_flush_at_exit)
    else:
        earlier.close(_FLUSH_AT_EXIT_SECONDS)
    if not structlog.is_configured() or structlog.get_config()["processors"] is not _PROCESSORS:
        structlog.configure(
            processors=_PROCESSORS,
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS["debug"]),
            logger_factory=structlog.ReturnLoggerFactory(),  # never called: _deliver ends every record
            cache_logger_on_first_use=True,
        )
    return system


def _deliver(_: object, method: str, event: MutableMapping[str, object]) -> Mapping[str, object]:
    """Write the record; structlog's last (and only) processor."""
    system = _Installed.system
    if system is not None:
        level = _METHOD_LEVELS.get(method, method)
        values = dict(event)
        logger = values.pop("channel", "")
        message = values.pop("event", "")
        exc_info = values.pop("exc_info", None)
        if exc_info:
            values["exception"] = _traceback(exc_info)
        system.log(level if level in LEVELS else "info", str(logger), message, values)
    raise structlog.DropEvent


def _traceback(exc_info: object) -> str:
    import traceback

    if isinstance(exc_info, tuple):
        error = exc_info[1]
    else:
        error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1]
    if error is None:
        return ""
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _flush_at_exit() -> None:
    if _Installed.system is not None:
        _Installed.system.close(_FLUSH_AT_EXIT_SECONDS)


#: Handed to structlog once and never replaced: loggers that have been used keep it.
_PROCESSORS: list[structlog.typing.Processor] = [_deliver]
