"""Which dead children of process 1 are taken for orphans."""

from __future__ import annotations

from trailboss.reaping import PATIENCE_LOOKS, Looks, look_again, overdue


def test_an_orphan_is_one_that_nobody_waits_for() -> None:
    """Dead at more looks than an owner needs: taken; not one look sooner."""
    looks: Looks = {}
    for _ in range(PATIENCE_LOOKS):
        looks = look_again(looks, {7: "100"})
        assert overdue(looks) == []
    assert overdue(look_again(looks, {7: "100"})) == [7]


def test_each_has_its_own_time() -> None:
    """One that dies later is left to its owner as long as the first was, and does not hold up the first."""
    looks: Looks = {}
    for _ in range(PATIENCE_LOOKS):
        looks = look_again(looks, {7: "100"})
    looks = look_again(looks, {7: "100", 8: "200"})
    assert overdue(looks) == [7]


def test_a_number_that_was_given_again_is_another_process() -> None:
    """The same number with another start time begins anew, and one that was waited for is forgotten."""
    looks: Looks = {}
    for _ in range(PATIENCE_LOOKS):
        looks = look_again(looks, {7: "100"})
    assert overdue(look_again(looks, {7: "101"})) == []
    assert look_again(looks, {}) == {}
