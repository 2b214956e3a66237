"""What kills workers again and again is refused, and nothing else."""

from __future__ import annotations

from trailboss.workers.quarantine import Quarantine, QuarantineLimits, fingerprint

LIMITS = QuarantineLimits(3, 60.0, 600.0)


def test_three_deaths_of_the_same_thing() -> None:
    """The third one makes it refused; another payload under the same label is not."""
    quarantine = Quarantine(LIMITS)
    assert not quarantine
    assert quarantine.died(0.0, "POST /a", b"poison", "signal") is None
    assert quarantine.died(1.0, "POST /a", b"poison", "signal") is None
    assert quarantine.refuses(1.5, "POST /a", b"poison") is None
    entry = quarantine.died(2.0, "POST /a", b"poison", "signal")
    assert entry is not None
    assert quarantine.refuses(3.0, "POST /a", b"poison") is entry
    assert quarantine.refuses(3.0, "POST /a", b"fine") is None
    assert [suspect.refused for suspect in quarantine.entries(4.0)] == [1]


def test_it_expires_and_can_be_removed() -> None:
    """After its time it is tried again, starting from nothing; people can do that sooner."""
    quarantine = Quarantine(LIMITS)
    for at in range(3):
        quarantine.died(float(at), "job", b"x", "exit")
    assert quarantine.refuses(601.0, "job", b"x") is not None
    assert quarantine.refuses(602.0, "job", b"x") is None
    assert not quarantine
    for at in range(3):
        quarantine.died(700.0 + at, "job", b"x", "exit")
    assert quarantine.remove(fingerprint("job", b"x"))
    assert not quarantine.remove(fingerprint("job", b"x"))
    assert quarantine.refuses(703.0, "job", b"x") is None


def test_a_success_clears_a_suspect() -> None:
    """A route that works between deaths is not poison."""
    quarantine = Quarantine(LIMITS)
    for at in range(20):
        assert quarantine.died(float(at), "GET /", b"", "signal") is None
        assert quarantine.died(float(at), "GET /", b"", "signal") is None
        quarantine.succeeded("GET /", b"")
    assert not quarantine


def test_deaths_far_apart_do_not_add_up() -> None:
    """Only those within the window count."""
    quarantine = Quarantine(LIMITS)
    for at in range(10):
        assert quarantine.died(at * 40.0, "job", b"x", "exit") is None


def test_off_and_bounded() -> None:
    """With deaths 0 nothing is noted; a flood of different ones does not grow without bound."""
    off = Quarantine(QuarantineLimits(deaths=0))
    assert off.died(0.0, "job", b"x", "exit") is None
    assert not off
    quarantine = Quarantine(LIMITS)
    for number in range(5000):
        quarantine.died(1.0, f"job {number}", b"", "exit")
    assert len(quarantine.suspects) == 1000
    quarantine.died(100.0, "job", b"x", "exit")
    assert len(quarantine.suspects) == 1


def test_workers_that_die_together_are_one_death() -> None:
    """Somebody kills a pool of eight over the same busy route: that is no poison. What is tried again after it counts."""
    quarantine = Quarantine(LIMITS)
    for _ in range(8):
        assert quarantine.died(10.0, "GET /", b"", "signal", began=9.5) is None
    assert quarantine.died(11.0, "GET /", b"", "signal", began=10.0) is None
    assert quarantine.died(11.1, "GET /", b"", "signal", began=10.5) is None
    assert quarantine.died(12.0, "GET /", b"", "signal", began=11.0) is not None
