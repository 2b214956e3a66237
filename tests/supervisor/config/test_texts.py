"""Environment variables in texts, dotenv files, and hiding secrets."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.config import ConfigError, redacted
from trailboss.config.dotenv import parse_dotenv
from trailboss.config.redact import redacted_text
from trailboss.config.substitution import expand_text

ENVIRONMENT = {"A": "1", "HOST": "db", "EMPTY": "", "SECRET": "pa$A${A}$$", "PORT": "6001"}


@pytest.mark.parametrize(
    ("text", "expanded", "unset"),
    [
        ("${A}", "1", ()),
        ("$A", "1", ()),
        ("x$A.y", "x1.y", ()),
        ("$A_B", "", ("A_B",)),
        ("tcp://${HOST}:${NO:-6001}", "tcp://db:6001", ()),
        ("${EMPTY:-d}", "d", ()),
        ("${EMPTY}", "", ()),
        ("${NO:-}", "", ()),
        ("${NO}", "", ("NO",)),
        ("$$A", "$A", ()),
        ("$${A}", "${A}", ()),
        ("$$$A", "$1", ()),
        ("${SECRET}", "pa$A${A}$$", ()),
        ("${NO:-a:-b}", "a:-b", ()),
        ("cost 5$", "cost 5$", ()),
        ("$5 $- $ $", "$5 $- $ $", ()),
        ("${NO:-two\nlines}", "two\nlines", ()),
    ],
)
def test_variables_are_expanded_once(text: str, expanded: str, unset: tuple[str, ...]) -> None:
    """Every form gives its value, an escape gives a dollar sign, and what a variable holds is left alone."""
    assert (expanded, unset) == expand_text(text, ENVIRONMENT)


@pytest.mark.parametrize(
    "text", ["${", "${A", "${}", "${A:?x}", "${A:+x}", "${1}", "${A B}", "${A:-${HOST}}", "${A-x}"]
)
def test_other_forms_are_refused(text: str) -> None:
    """A form that would silently mean something else elsewhere is an error."""
    with pytest.raises(ValueError, match=r"\$\{"):
        expand_text(text, ENVIRONMENT)


def test_expansion_is_bounded() -> None:
    """Variables cannot blow a text up without limit."""
    with pytest.raises(ValueError, match="more than 8 MiB"):
        expand_text("$BIG" * 100, {"BIG": "x" * (1 << 20)})


@given(st.text(alphabet="ab }{:-", max_size=40))
def test_text_without_a_dollar_is_unchanged(text: str) -> None:
    """Only a dollar sign starts anything."""
    assert (text, ()) == expand_text(text, {})


def test_dotenv_forms() -> None:
    """Comments, quotes, export, escapes, references, several lines; variables that exist are kept."""
    text = (
        '# first\n\nA=new\nexport B = two words # comment\nC=\'$A # "raw"\'\nD="x\\n$B\\$A"\n'
        'E="line 1\nline 2"\nF=\nG: yaml\nH=${NO:-d}\r\nI=a#b\nJ=# nothing\nK="${HOST}"'
    )

    assert parse_dotenv(text, "f", ENVIRONMENT) == {
        "B": "two words",
        "C": '$A # "raw"',
        "D": "x\ntwo words$A",
        "E": "line 1\nline 2",
        "F": "",
        "G": "yaml",
        "H": "d",
        "I": "a#b",
        "J": "",
        "K": "db",
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [("A=1\nhunter2 x\n", 2), ('A="hunter2\n', 1), ("=hunter2", 1), ("A=${hunter2", 1), ("A=hunter2\x00", 1)],
)
def test_a_bad_dotenv_line_is_named(text: str, line: int) -> None:
    """The line number is given and the line itself is not repeated."""
    with pytest.raises(ConfigError) as caught:
        parse_dotenv(text, "f", {})

    assert [line] == [problem.line for problem in caught.value.problems]
    assert "hunter2" not in str(caught.value)


def test_secrets_are_hidden() -> None:
    """Keys that name secrets, headers, user parts of URLs and arguments are hidden; everything else stays."""
    hidden = redacted(
        {
            "rpc": {"listen": "tcp://127.0.0.1:6001"},
            "server": {
                "command": ["php", "w.php", "--password=hunter2", "--token", "--api-key=hunter2"],
                "on_init": {"command": "migrate --db-password hunter2 --force"},
                "env": {
                    "APP_KEY": "hunter2",
                    "DATABASE_URL": "pgsql://user:hunter2@db/x",
                    "REDIS": "redis://:hunter2@db",
                    "ODD": "amqp://u:hunter2/@hunter2@h",
                    "DB_PASS": "hunter2",
                    "jwtSecret": "hunter2",
                    "MONKEY": "banana",
                    "MAILER_DSN": "hunter2",
                    "EMPTY_TOKEN": "",
                },
            },
            "otel": {"headers": {"x-team": "hunter2"}, "endpoint": "c:4317"},
            "kv": {"tls": {"key": {"deep": ["hunter2", None]}}},
            "routing_key": "emails",
        }
    )

    assert "hunter2" not in str(hidden)
    assert "tcp://127.0.0.1:6001" in str(hidden)
    assert "banana" in str(hidden)
    assert "emails" in str(hidden)
    assert "pgsql://***@db/x" in str(hidden)
    assert "c:4317" in str(hidden)


def test_hiding_secrets_takes_linear_time() -> None:
    """Texts made to send a careless pattern back and forth are done quickly."""
    started = time.monotonic()
    redacted(
        {
            "a": "a" * 1_000_000,
            "b": "a://" * 50_000,
            "c": "key" * 100_000,
            "d": "key" + " " * 500_000,
            "e": "x@" * 50_000,
        }
    )

    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("php w.php --password=hunter2 -v", "php w.php --password=*** -v"),
        ("php w.php --db-password hunter2 -v", "php w.php --db-password *** -v"),
        ("php w.php --token --force", "php w.php --token --force"),
        ("exit 1: cannot reach pgsql://app:hunter2@db/x", "exit 1: cannot reach pgsql://***@db/x"),
        ("the token was refused", "the token was refused"),
        ("php w.php --keyboard qwerty", "php w.php --keyboard qwerty"),
    ],
)
def test_secrets_in_a_line_of_text_are_hidden(text: str, shown: str) -> None:
    """Command lines and last words lose what looks like a secret, and nothing else."""
    assert redacted_text(text) == shown
