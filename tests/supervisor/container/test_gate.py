"""The gate as a table: access x phase of the whole x phase of the plugin x caller x pool, against an oracle."""

from __future__ import annotations

import itertools
import pathlib

import pytest

from trailboss.container import gate as gate_module
from trailboss.container import lifecycle, methods, order
from trailboss.container.gate import (
    GateView,
    Pass,
    PluginView,
    Refuse,
    Wait,
    decide,
    not_ready_text,
    waited_for,
)
from trailboss.container.lifecycle import Phase, WholePhase
from trailboss.container.methods import Access, Caller, CallerRole, RpcMethod
from trailboss_worker.sdk.rpc_errors import parse_not_ready

OPERATOR = Caller(pid=1)
ON_INIT = Caller(CallerRole.ON_INIT, pid=2)
WORKER = Caller(CallerRole.WORKER, pool="jobs", pid=3)
BOOTING = Caller(CallerRole.WORKER, pool="jobs", pid=123, booting=True)
OTHER_BOOTING = Caller(CallerRole.WORKER, pool="http", pid=5, booting=True)
CALLERS = {
    "operator": OPERATOR,
    "on_init": ON_INIT,
    "worker": WORKER,
    "booting": BOOTING,
    "other": OTHER_BOOTING,
}

# (phase of the whole, gate open, on_init runs): every combination that a life goes through
SITUATIONS = {
    "starting": (WholePhase.STARTING, False, False),
    "initialising": (WholePhase.INITIALISING, True, True),
    "booting": (WholePhase.BOOTING, True, False),
    "ready": (WholePhase.READY, True, False),
    "draining": (WholePhase.DRAINING, True, False),
    "draining, gate closed": (WholePhase.DRAINING, False, False),
    "stopped": (WholePhase.STOPPED, False, False),
}


async def handler(argument: object, caller: Caller) -> object:
    """Never called here."""
    raise AssertionError


def method(access: Access = Access.NORMAL, name: str = "jobs.Push") -> RpcMethod:
    """A method in few words."""
    return RpcMethod(name, handler, access)


def oracle(
    access: Access,
    situation: str,
    own: Phase,
    caller: str,
    needs: str,
    pool_boots: bool,
    waited: float,
    limit: float,
) -> str:
    """The rules of the design in the order in which they are written there, as one word."""
    whole, is_open, restricted = SITUATIONS[situation]
    ending = whole in (WholePhase.DRAINING, WholePhase.STOPPED)
    coming = own in (Phase.DECLARED, Phase.STARTING)
    if access is Access.ALWAYS:
        return "pass"
    if own is Phase.FAILED or own is Phase.STOPPED or (ending and not is_open):
        return "refuse"
    if restricted and access is Access.SENSITIVE:
        return "refuse"
    if needs == "jobs" and caller == "booting":
        return "refuse"
    if needs and pool_boots and (caller == "on_init" or ending):
        return "refuse"
    if not is_open or coming or (needs and pool_boots):
        return "refuse" if waited >= limit else "wait"
    return "pass"


def test_cross_product() -> None:
    """Every combination is decided as the rules say: 10,080 cells."""
    cells = 0
    for access, situation, own, caller, needs, pool_boots, (waited, limit) in itertools.product(
        Access,
        SITUATIONS,
        Phase,
        CALLERS,
        ("", "jobs"),
        (False, True),
        ((0.0, 5.0), (4.9, 5.0), (5.0, 5.0), (0.0, 0.0)),
    ):
        whole, is_open, restricted = SITUATIONS[situation]
        view = GateView(
            whole,
            is_open,
            restricted,
            (PluginView("kv", Phase.HEALTHY), PluginView("jobs", own, 1.25, "it broke")),
            frozenset({"jobs"} if pool_boots else ()),
            2.0,
        )
        decision = decide(method(access), needs, view, CALLERS[caller], waited, limit)
        expected = oracle(access, situation, own, caller, needs, pool_boots, waited, limit)
        assert type(decision).__name__.lower() == expected, (
            access,
            situation,
            own,
            caller,
            needs,
            pool_boots,
            waited,
        )
        if isinstance(decision, Refuse):
            assert decision.text.startswith(
                ("service not ready: phase=", "refused during on_init: ", "service not available: ")
            )
        if isinstance(decision, Wait):
            assert decision.waiting_for != ()
        cells += 1

    assert cells == 3 * 7 * 6 * 5 * 2 * 2 * 4


def test_nothing_passes_a_closed_gate_but_always_on_methods() -> None:
    """Whatever else is the case, a closed gate lets only always-on methods through."""
    for access, whole, own, caller, needs in itertools.product(
        Access, WholePhase, Phase, CALLERS.values(), ("", "jobs")
    ):
        view = GateView(whole, False, plugins=(PluginView("jobs", own),))
        decision = decide(method(access), needs, view, caller, 0, 5)
        assert isinstance(decision, Pass) == (access is Access.ALWAYS)


def view_of(
    whole: WholePhase,
    *plugins: PluginView,
    is_open: bool = False,
    on_init: bool = False,
    pools: tuple[str, ...] = (),
) -> GateView:
    """A view in few words."""
    return GateView(whole, is_open, on_init, plugins, frozenset(pools), 3.0)


STARTING = view_of(
    WholePhase.STARTING,
    PluginView("logs", Phase.HEALTHY, 2.0),
    PluginView("jobs", Phase.STARTING, 1.2),
    PluginView("kv", Phase.DECLARED, 1.24),
)


def text(*arguments: object) -> str:
    """The text of a refusal."""
    decision = decide(*arguments)  # type: ignore[arg-type]
    assert isinstance(decision, Refuse)
    return decision.text


def test_text_while_starting() -> None:
    """The text names phase, plugins and durations, in the form that clients parse."""
    expected = "service not ready: phase=starting; waiting for jobs (starting, 1.2s), kv (declared, 1.2s)"

    assert text(method(), "", STARTING, OPERATOR, 5.0, 5.0) == expected
    assert text(method(), "", STARTING, OPERATOR, 0.0, 0.0) == expected
    assert not_ready_text(STARTING) == expected
    assert decide(method(), "", STARTING, OPERATOR, 1.0, 5.0) == Wait(("jobs", "kv"))
    assert waited_for(STARTING) == ("jobs (starting, 1.2s)", "kv (declared, 1.2s)")


def test_sdk_reads_the_text() -> None:
    """What the gate writes, the Python SDK takes apart again."""
    phase, waits = parse_not_ready(not_ready_text(STARTING))

    assert phase == "starting"
    assert [tuple(wait) for wait in waits] == [("jobs", "starting", 1.2), ("kv", "declared", 1.2)]


def test_text_for_a_pool() -> None:
    """Who needs a pool that boots hears of the pool."""
    view = view_of(WholePhase.BOOTING, PluginView("jobs", Phase.HEALTHY), is_open=True, pools=("jobs",))

    assert decide(method(), "jobs", view, OPERATOR, 0, 5) == Wait(("pool jobs",))
    assert text(method(), "jobs", view, OPERATOR, 5, 5) == (
        "service not ready: phase=booting pools; waiting for pool jobs (booting, 3.0s)"
    )
    assert decide(method(), "http", view, OPERATOR, 0, 5) == Pass()


def test_text_of_a_wait_for_itself() -> None:
    """A call that would wait for the pool that waits for its caller is refused at once, also long after the start."""
    booting = view_of(WholePhase.BOOTING, is_open=True, pools=("jobs",))
    ready = view_of(WholePhase.READY, is_open=True)

    assert text(method(name="jobs.Work"), "jobs", booting, BOOTING, 0, 5) == (
        "service not ready: phase=booting pools; jobs.Work would wait for the pool jobs, "
        "which waits for this very caller (pid 123)"
    )
    assert "this very caller (pid 123)" in text(method(), "jobs", ready, BOOTING, 0, 5)
    assert decide(method(), "jobs", ready, WORKER, 0, 5) == Pass()


def test_text_during_on_init() -> None:
    """Sensitive methods are refused for everybody while on_init runs; a pool can never be waited for by on_init."""
    view = view_of(WholePhase.INITIALISING, is_open=True, on_init=True, pools=("jobs",))
    destroy = method(Access.SENSITIVE, "jobs.Destroy")

    for caller in CALLERS.values():
        assert text(destroy, "", view, caller, 0, 5) == (
            "refused during on_init: jobs.Destroy is a sensitive method; call it again when on_init has ended"
        )
    assert "would wait for the pool jobs, which boots only after on_init" in text(
        method(), "jobs", view, ON_INIT, 0, 5
    )
    assert decide(method(), "", view, ON_INIT, 0, 5) == Pass()
    assert waited_for(view) == ("on_init (running, 3.0s)", "pool jobs (declared, 3.0s)")


def test_text_for_a_failed_plugin() -> None:
    """A plugin that has failed for good is refused at once, with its reason, even behind a closed gate."""
    failed = PluginView("jobs", Phase.FAILED, 1.0, "disk full", optional=True)
    for view in (
        view_of(WholePhase.STARTING, failed, PluginView("kv", Phase.STARTING)),
        view_of(WholePhase.READY, failed, is_open=True),
    ):
        assert (
            text(method(), "", view, OPERATOR, 0, 5) == "service not available: plugin jobs failed: disk full"
        )


def test_text_while_stopping() -> None:
    """While draining calls pass; when the gate has closed they are told that the server is stopping."""
    drained = view_of(WholePhase.DRAINING, PluginView("jobs", Phase.DRAINING))

    assert (
        text(method(), "", drained, OPERATOR, 0, 5)
        == "service not ready: phase=draining; the server is stopping"
    )
    still_open = view_of(WholePhase.DRAINING, PluginView("jobs", Phase.DRAINING), is_open=True)
    assert decide(method(), "", still_open, OPERATOR, 0, 5) == Pass()
    stopped = view_of(WholePhase.DRAINING, PluginView("jobs", Phase.STOPPED), is_open=True)
    assert (
        text(method(), "", stopped, OPERATOR, 0, 5)
        == "service not ready: phase=draining; plugin jobs has stopped"
    )


def test_plugin_may_differ_from_the_name_of_the_method() -> None:
    """`plugin` says whose failure counts."""
    view = view_of(WholePhase.READY, PluginView("jobs", Phase.FAILED, reason="x"), is_open=True)

    assert isinstance(
        decide(RpcMethod("queue.Push", handler, plugin="jobs"), "", view, OPERATOR, 0, 5), Refuse
    )
    assert decide(RpcMethod("queue.Push", handler), "", view, OPERATOR, 0, 5) == Pass()


def test_all_settled_but_not_open_yet() -> None:
    """Between the last plugin and the opening a call waits for the gate itself."""
    view = view_of(WholePhase.STARTING, PluginView("jobs", Phase.HEALTHY))

    assert decide(method(), "", view, OPERATOR, 0, 5) == Wait(("gate",))


@pytest.mark.parametrize("module", [gate_module, lifecycle, methods, order])
def test_pure_files_import_no_trio(module: object) -> None:
    """What decides does not know the event loop."""
    source = pathlib.Path(str(getattr(module, "__file__", ""))).read_text(encoding="utf-8")

    assert "import trio" not in source
    assert "from trio" not in source
