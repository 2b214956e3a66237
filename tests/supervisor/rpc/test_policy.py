"""Who may call what: tokens, `rpc.policy`, and the log of calls that change something."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest
import structlog
import trio

from trailboss.config import ConfigError, LoadRequest, load
from trailboss.config.schema import RpcConfig
from trailboss.container.contract import Access, Caller, CallerRole, RpcMethod, RpcRefused, Services
from trailboss.plugins.core.plugin import CorePlugin
from trailboss.rpc.policy import Policy, kinds_of
from trailboss.workers.callers import Callers, new_token

WORKER = Caller(CallerRole.WORKER, "jobs", 7, 1000)
OPERATOR = Caller(CallerRole.OPERATOR, "", 8, 1000)


# --- pure -------------------------------------------------------------------------------------------------------------


def test_the_first_pattern_that_matches_decides() -> None:
    """In the order of the file; what none matches is for everybody."""
    policy = Policy({"jobs.P*": ["own_worker"], "jobs.*": ["operator"], "x.*": []})
    assert policy.allowed("jobs.Push") == frozenset({"own_worker"})
    assert policy.allowed("jobs.List") == frozenset({"operator"})
    assert policy.allowed("x.Y") == frozenset()
    assert policy.allowed("http.List") is None
    assert policy.idle_patterns(["jobs.Push"]) == ["x.*"]


@pytest.mark.parametrize(
    ("caller", "pool", "kinds"),
    [
        (WORKER, "jobs", {"any_worker", "own_worker"}),
        (WORKER, "http", {"any_worker"}),
        (WORKER, "", {"any_worker"}),
        (Caller(CallerRole.ON_INIT), "jobs", {"on_init"}),
        (OPERATOR, "jobs", {"operator"}),
        (dataclasses.replace(OPERATOR, uid=33), "jobs", set()),
        (dataclasses.replace(OPERATOR, uid=-1), "jobs", set()),
    ],
)
def test_what_a_caller_counts_as(caller: Caller, pool: str, kinds: set[str]) -> None:
    """Nobody of another user, and nobody from another machine, is an operator."""
    assert kinds == kinds_of(caller, pool, {0, 1000})


def test_a_refusal_says_for_whom_a_method_is() -> None:
    """Method, who may, who asked."""
    policy = Policy({"jobs.*": ["operator", "on_init"]}, {1000})
    roles = policy.allowed("jobs.Push")
    assert roles is not None
    assert policy.refusal("jobs.Push", roles, OPERATOR, "jobs") == ""
    assert policy.refusal("jobs.Push", roles, WORKER, "jobs") == (
        "refused by rpc.policy: jobs.Push is for on_init, operator, not for own_worker or any_worker"
    )


def test_tokens_live_as_long_as_their_process() -> None:
    """A token says who it is until the process has been reaped; an unknown one says nothing."""
    callers = Callers()
    token = new_token()
    callers.add(4_000_001, CallerRole.WORKER, "http", token)
    stranger = Caller(CallerRole.OPERATOR, "", 0, 55)
    found = callers.authenticate(token, stranger)
    assert found == Caller(CallerRole.WORKER, "http", 0, 55, True, 4_000_001, True)
    callers.ready(4_000_001)
    assert callers.refresh(found) == dataclasses.replace(found, booting=False)
    assert callers.authenticate(new_token(), stranger) is None
    assert callers.authenticate("\ud800", stranger) is None
    callers.discard(4_000_001)
    assert callers.authenticate(token, stranger) is None
    assert callers.refresh(found) == dataclasses.replace(found, booting=False)
    assert token not in repr(callers.__dict__)


@pytest.mark.parametrize(
    ("text", "word"),
    [('{"jobs.*": [worker]}', "worker"), ("jobs", "policy"), ('{"jobs.*": {a: b}}', "list")],
)
def test_rules_that_say_nothing_are_errors(tmp_path: Any, text: str, word: str) -> None:
    """A kind of caller that does not exist, and other forms."""
    path = tmp_path / ".rr.yaml"
    path.write_text(f'version: "3"\nrpc: {{policy: {text}}}\n')
    with pytest.raises(ConfigError, match=word):
        load(LoadRequest(path=str(path), environ={}))


def test_rules_keep_their_order(tmp_path: Any) -> None:
    """Patterns with dots are names, not sections; the order is that of the file."""
    path = tmp_path / ".rr.yaml"
    path.write_text(
        'version: "3"\nrpc:\n  policy:\n    jobs.Push: [any_worker]\n    "jobs.*": operator\n    "*": [operator]\n'
    )
    config = load(LoadRequest(path=str(path), environ={}))
    assert list(config.rpc.policy.items()) == [
        ("jobs.Push", ("any_worker",)),
        ("jobs.*", ("operator",)),
        ("*", ("operator",)),
    ]


# --- on a connection --------------------------------------------------------------------------------------------------


def _decline(_argument: object, _caller: Caller) -> object:
    raise RpcRefused("not now")


async def _later(_argument: object, _caller: Caller) -> bool:
    await trio.lowlevel.checkpoint()
    return True


def _methods(seen: list[Caller]) -> list[RpcMethod]:
    def note(_argument: object, caller: Caller) -> bool:
        seen.append(caller)
        return True

    return [
        RpcMethod("test.Who", note, Access.ALWAYS),
        RpcMethod("jobs.Push", note),
        RpcMethod("jobs.Reset", note, Access.SENSITIVE, argument=str, needs_pool=str),
        RpcMethod("jobs.Later", _later, Access.SENSITIVE),
        RpcMethod("jobs.Never", _decline, Access.SENSITIVE),
    ]


async def _core(services: Services, nursery: trio.Nursery) -> list[RpcMethod]:
    plugin = CorePlugin({})
    await nursery.start(plugin.run, services, trio.Event())
    return list(plugin.rpc_methods())


@pytest.fixture
def known() -> Callers:
    """Callers that know one worker, of no session that exists."""
    callers = Callers()
    callers.add(4_000_001, CallerRole.WORKER, "jobs", "the-token")
    callers.ready(4_000_001)
    return callers


async def test_a_token_says_whose_connection_it_is(
    helpers: Any, rpc_config: RpcConfig, known: Callers, nursery: trio.Nursery
) -> None:
    """Before it a stranger, afterwards the worker, for this connection only; a wrong token changes nothing."""
    seen: list[Caller] = []
    services = Services()
    services.provide(Callers, known)
    methods = [*_methods(seen), *await _core(services, nursery)]
    config = dataclasses.replace(
        rpc_config,
        policy={"jobs.*": ("own_worker",), "trailboss.Authenticate": (), "test.*": ("any_worker",)},
    )
    with trio.fail_after(5):
        async with helpers.running(methods, config, services=services) as bench, bench.client() as client:
            reply = await client.call("jobs.Push")
            assert reply.body == b"refused by rpc.policy: jobs.Push is for own_worker, not for operator"
            reply = await client.call("trailboss.Authenticate", b'"wrong"')
            assert reply.is_error
            assert b"authentication failed" in reply.body
            reply = await client.call("trailboss.Authenticate", b'"the-token"')
            assert (reply.is_error, json.loads(reply.body)) == (False, "worker")
            assert not (await client.call("jobs.Push")).is_error
            assert not (await client.call("jobs.Reset", b'"jobs"')).is_error
            assert (await client.call("jobs.Reset", b'"http"')).is_error
            assert not (await client.call("test.Who")).is_error
            async with bench.client() as other:
                assert (await other.call("jobs.Push")).is_error
            assert bench.server.counters.refused == 3
    assert {(caller.role, caller.pool, caller.pid, caller.authenticated) for caller in seen} == {
        (CallerRole.WORKER, "jobs", os.getpid(), True)
    }
    assert len(seen) == 3


async def test_calls_that_change_something_are_logged(helpers: Any, rpc_config: RpcConfig) -> None:
    """Who, what, and how it ended, once each; other calls are not, nor is what a call was about."""
    with structlog.testing.capture_logs() as records, trio.fail_after(5):
        async with helpers.running(_methods([]), rpc_config) as bench, bench.client() as client:
            await client.call("jobs.Push")
            await client.call("jobs.Reset", b'"secret-argument"')
            await client.call("jobs.Later")
            await client.call("jobs.Never")
    rows = [record for record in records if record["event"] == "sensitive call"]
    assert [(row["method"], row["outcome"], row.get("text")) for row in rows] == [
        ("jobs.Reset", "done", None),
        ("jobs.Later", "done", None),
        ("jobs.Never", "failed", "not now"),
    ]
    assert {(row["caller"], row["pid"], row["uid"]) for row in rows} == {
        ("operator", os.getpid(), os.geteuid())
    }
    assert "secret-argument" not in repr(records)


async def test_a_pattern_that_matches_nothing_is_told(helpers: Any, rpc_config: RpcConfig) -> None:
    """It is most likely misspelt."""
    config = dataclasses.replace(rpc_config, policy={"job.*": ("operator",), "jobs.*": ("operator",)})
    with structlog.testing.capture_logs() as records, trio.fail_after(5):
        async with helpers.running(_methods([]), config) as bench, bench.client() as client:
            assert not (await client.call("jobs.Push")).is_error
    assert [row["pattern"] for row in records if "matches no method" in row["event"]] == ["job.*"]
