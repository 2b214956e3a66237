"""core: version, configuration without secrets, state, deaths, methods."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import trio

import trailboss
from trailboss.container.contract import Access, Caller, Services, WholePhase
from trailboss.container.inspect import HttpInspector
from trailboss.container.state import ServerState
from trailboss.plugins.core.plugin import CorePlugin
from trailboss.rpc.codec import encode_result
from trailboss.rpc.registry import Registry
from trailboss.testing.check_plugin import check_plugin
from trailboss.workers.deaths import DeathRecord, Deaths


async def started(nursery: trio.Nursery, plugin: CorePlugin, services: Services) -> Any:
    services.provide(ServerState, ServerState())
    await nursery.start(plugin.run, services, trio.Event())
    methods = {method.name: method for method in plugin.rpc_methods()}
    return lambda name: methods[name].handler(True, Caller())


def test_the_version_is_the_one_sdks_compare() -> None:
    """rpc.Version answers before anything has started."""
    methods = {method.name: method for method in CorePlugin({}).rpc_methods()}
    assert methods["rpc.Version"].handler(None, Caller()) == trailboss.ROADRUNNER_COMPAT_VERSION
    assert methods["rpc.Version"].access is Access.ALWAYS


async def test_the_configuration_comes_without_secrets(nursery: trio.Nursery) -> None:
    """rpc.Config is JSON text with RAW, base64 of it with JSON, and hides secrets in both."""
    merged = {"version": "3", "kv": {"redis": {"password": "hunter2", "addrs": ["redis://u:hunter2@x:1"]}}}
    call = await started(nursery, CorePlugin(merged), Services())
    text = encode_result("raw", call("rpc.Config"))
    assert json.loads(text)["version"] == "3"
    assert b"hunter2" not in text
    assert encode_result("json", call("rpc.Config")).startswith(b'"ey')


async def test_the_state_is_the_servers(nursery: trio.Nursery) -> None:
    """trailboss.State shows phase and gate as they are at the time of the call."""
    services = Services()
    call = await started(nursery, CorePlugin({}), services)
    assert (call("trailboss.State")["phase"], call("trailboss.State")["gate"]) == ("starting", "closed")
    services.get(ServerState).set_whole(WholePhase.READY)
    services.get(ServerState).open_gate()
    assert (call("trailboss.State")["phase"], call("trailboss.State")["gate"]) == ("ready", "open")


async def test_deaths_are_told_with_their_explanation(nursery: trio.Nursery) -> None:
    """trailboss.Deaths gives each record as JSON values and as text for people."""
    services = Services()
    call = await started(nursery, CorePlugin({}), services)
    assert call("trailboss.Deaths") == []
    deaths = Deaths()
    services.provide(Deaths, deaths)
    deaths.add(DeathRecord(0.0, "jobs", 7, "signal", "killed by SIGKILL", None, 9, "busy", "job x", 1.0, 3))
    (row,) = call("trailboss.Deaths")
    assert (row["pool"], row["pid"], row["cause"]) == ("jobs", 7, "signal")
    assert "job x" in row["explanation"]
    json.dumps(row)


async def test_refusals_come_from_the_web_server(nursery: trio.Nursery) -> None:
    """trailboss.Refusals is the web server's report; without one there is nothing to tell."""
    services = Services()
    call = await started(nursery, CorePlugin({}), services)
    assert call("trailboss.Refusals") == {"total": 0, "counts": [], "refusals": []}
    report = {"total": 1, "counts": [], "refusals": [{"status": 503}]}
    services.provide(HttpInspector, SimpleNamespace(http_refusals=lambda last: report))  # type: ignore[type-abstract, arg-type]
    assert call("trailboss.Refusals") == report


async def test_workers_without_pools(nursery: trio.Nursery) -> None:
    """trailboss.Workers always has the server's phase; pools where there are any."""
    call = await started(nursery, CorePlugin({}), Services())
    answer = call("trailboss.Workers")
    assert (answer["phase"], answer["pools"]) == ("starting", [])
    encode_result("json", answer)


async def test_the_methods_are_those_of_the_registry(nursery: trio.Nursery) -> None:
    """trailboss.Methods lists what the RPC port serves; empty until the port is bound."""
    services = Services()
    plugin = CorePlugin({})
    call = await started(nursery, plugin, services)
    assert call("trailboss.Methods") == []
    services.provide(Registry, Registry(plugin.rpc_methods()))
    names = [row["name"] for row in call("trailboss.Methods")]
    assert names == [
        "rpc.Config",
        "rpc.Version",
        "trailboss.Authenticate",
        "trailboss.Deaths",
        "trailboss.LiftQuarantine",
        "trailboss.Methods",
        "trailboss.Quarantine",
        "trailboss.Refusals",
        "trailboss.Reload",
        "trailboss.State",
        "trailboss.Upgrade",
        "trailboss.Workers",
    ]
    encode_result("json", call("trailboss.Methods"))


async def test_the_plugin_keeps_the_contract(autojump_clock: Any) -> None:
    """The battery for every plugin."""
    await check_plugin(lambda: CorePlugin({"version": "3"}))
