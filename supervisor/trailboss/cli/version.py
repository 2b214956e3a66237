"""The one line of `--version`.

Called as `rr` it begins as RoadRunner's does, because Laravel Octane takes its third word for a RoadRunner version; the
number is then the one whose features Trailboss has.
"""

from __future__ import annotations

import platform
import sys

import trailboss

__all__ = ["version_line"]


def version_line(program: str) -> str:
    """Return the line; `program` is the name Trailboss was called by."""
    from trailboss_worker.protocol.frames import codec_name

    implementation = f"{platform.python_implementation()} {platform.python_version()}"
    system, machine = platform.system().lower(), platform.machine()
    codec = f"frame codec: {codec_name()}"
    if program == "rr":
        return (
            f"rr version {trailboss.ROADRUNNER_COMPAT_VERSION} (Trailboss {trailboss.__version__}, {implementation}, "
            f"{codec}), OS: {sys.platform}, arch: {machine}"
        )
    return f"trailboss version {trailboss.__version__} ({implementation}, {codec}), OS: {system}, arch: {machine}"
