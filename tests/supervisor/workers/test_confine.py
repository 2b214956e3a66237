"""What confines a worker, as a prefix of its command."""

from __future__ import annotations

import pytest

from trailboss.config.schema import ProcessConfig
from trailboss.workers.confine import missing_tools, prefix_for
from trailboss.workers.process import Identity

SOMEBODY = Identity("app", 1000, 1001, (1001, 4))


def test_nothing_asked_for_is_no_prefix() -> None:
    """The default start of a worker has no step of ours in between."""
    assert prefix_for(ProcessConfig(), None) == ()


def test_a_user_never_gains_privileges() -> None:
    """With a user, privileges and capabilities are given up, unless that is turned off."""
    assert prefix_for(ProcessConfig(), SOMEBODY) == (
        *("setpriv", "--reuid", "1000", "--regid", "1001", "--groups", "1001,4"),
        *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"),
    )
    off = ProcessConfig(no_new_privs=False, drop_capabilities=False)
    assert prefix_for(off, SOMEBODY) == ()  # the user is changed by the spawn itself
    nobody = Identity("nobody", 1, 1, ())
    assert "--clear-groups" in prefix_for(ProcessConfig(), nobody)


def test_what_root_sets_comes_before_the_user_changes() -> None:
    """Every tool once, setpriv last."""
    process = ProcessConfig(
        nice=-5,
        io_class="best-effort",
        io_level=1,
        cpu_affinity="0-3,8",
        oom_score_adj=-500,
        rlimits={"nofile": "4096:8192", "core": "0"},
    )
    assert prefix_for(process, SOMEBODY)[:18] == (
        *("nice", "-n", "-5", "ionice", "-c", "2", "-n", "1", "taskset", "-c", "0-3,8"),
        *("choom", "-n", "-500", "--", "prlimit", "--nofile=4096:8192", "--core=0"),
    )
    assert prefix_for(process, SOMEBODY)[18] == "setpriv"
    assert "setpriv" not in prefix_for(process, None)


@pytest.mark.parametrize("io_class", ["idle", "realtime"])
def test_the_idle_class_has_no_levels(io_class: str) -> None:
    """ionice takes a level for the others only."""
    words = prefix_for(ProcessConfig(io_class=io_class), None)  # type: ignore[arg-type]
    assert (words[-2:] == ("-c", "3")) is (io_class == "idle")


def test_tools_that_are_missing_are_named() -> None:
    """Only tools, not their arguments."""
    prefix = prefix_for(ProcessConfig(nice=1, cpu_affinity="0"), None)
    assert missing_tools(prefix) == []
    assert missing_tools(prefix, path="/nowhere") == ["nice", "taskset"]
