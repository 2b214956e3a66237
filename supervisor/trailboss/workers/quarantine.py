"""Pure: executions that kill workers, and are refused after they have killed enough of them.

What a worker ran when it died has a fingerprint: its label (route, or name of the job) and a hash of its payload. After
`deaths` deaths of different workers within `within_seconds`, each by the same fingerprint and with no success of it in
between, it is quarantined: refused at once, for `expiry_seconds`, so that one poison request does not take down a pool.
One success clears a suspect; people see the list and can remove entries.

Workers that die together over the same thing are one death: what had begun before the last one says nothing new, and
somebody who kills a whole pool at once must not have its busiest route refused.

Nothing is looked at, and nothing hashed, while there is no suspect, so a healthy pool pays nothing. No clock, no I/O.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = ["Quarantine", "QuarantineLimits", "Suspect", "fingerprint"]

SUSPECTS_MAX = 1000


def fingerprint(label: str, body: bytes) -> str:
    """Return what stands for an execution: 16 hexadecimal digits."""
    digest = hashlib.blake2b(label.encode("utf-8", "surrogateescape"), digest_size=8)
    digest.update(b"\0")
    digest.update(body)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class QuarantineLimits:
    """When something is refused; `deaths` 0 turns it off. Times in seconds."""

    deaths: int = 3
    within_seconds: float = 60.0
    expiry_seconds: float = 600.0


@dataclass(slots=True)
class Suspect:
    """Something that was running when workers died."""

    fingerprint: str
    label: str
    #: When workers died of it, oldest first, on the caller's clock.
    deaths: list[float] = field(default_factory=list)
    #: Until when it is refused; None while it is only suspected.
    until: float | None = None
    refused: int = 0
    cause: str = ""


class Quarantine:
    """The suspects of one pool."""

    def __init__(self, limits: QuarantineLimits) -> None:
        self.limits = limits
        #: By fingerprint; empty while nothing is suspected.
        self.suspects: dict[str, Suspect] = {}
        self._labels: dict[str, int] = {}

    def __bool__(self) -> bool:
        """Whether there is anybody to look for."""
        return bool(self.suspects)

    def died(
        self, now: float, label: str, body: bytes, cause: str, *, began: float | None = None
    ) -> Suspect | None:
        """Note that a worker died over an execution that `began` then (None: just now).

        Returns the suspect if that puts it in quarantine.
        """
        limits = self.limits
        if not limits.deaths:
            return None
        self._expire(now)
        key = fingerprint(label, body)
        suspect = self.suspects.get(key)
        if suspect is None:
            if len(self.suspects) >= SUSPECTS_MAX:
                return None
            suspect = self.suspects[key] = Suspect(key, label)
            self._labels[label] = self._labels.get(label, 0) + 1
        suspect.cause = cause
        if began is not None and suspect.deaths and began < suspect.deaths[-1]:
            return None  # it ran beside one that has been counted
        suspect.deaths = [at for at in suspect.deaths if at > now - limits.within_seconds] + [now]
        if suspect.until is None and len(suspect.deaths) >= limits.deaths:
            suspect.until = now + limits.expiry_seconds
            return suspect
        return None

    def knows(self, label: str) -> bool:
        """Whether there is a suspect of this label; what has another one need not be looked at."""
        return label in self._labels

    def refuses(self, now: float, label: str, body: bytes) -> Suspect | None:
        """Return the entry because of which an execution is refused now, or None."""
        suspect = self._find(label, body)
        if suspect is None or suspect.until is None:
            return None
        if now >= suspect.until:
            self.remove(suspect.fingerprint)
            return None
        suspect.refused += 1
        return suspect

    def succeeded(self, label: str, body: bytes) -> None:
        """An execution came through: if it was suspected, it is so no more."""
        suspect = self._find(label, body)
        if suspect is not None and suspect.until is None:
            self.remove(suspect.fingerprint)

    def _find(self, label: str, body: bytes) -> Suspect | None:
        # Hash only what has a suspect's label.
        return self.suspects.get(fingerprint(label, body)) if self.knows(label) else None

    def remove(self, key: str) -> bool:
        """Forget an entry; False if there is none such."""
        suspect = self.suspects.pop(key, None)
        if suspect is None:
            return False
        left = self._labels[suspect.label] - 1
        if left:
            self._labels[suspect.label] = left
        else:
            del self._labels[suspect.label]
        return True

    def entries(self, now: float) -> list[Suspect]:
        """What is refused now, the newest first."""
        self._expire(now)
        found = [suspect for suspect in self.suspects.values() if suspect.until is not None]
        return sorted(found, key=lambda suspect: suspect.deaths[-1], reverse=True)

    def _expire(self, now: float) -> None:
        window = self.limits.within_seconds
        for key, suspect in list(self.suspects.items()):
            over = suspect.until <= now if suspect.until is not None else suspect.deaths[-1] <= now - window
            if over:
                self.remove(key)
