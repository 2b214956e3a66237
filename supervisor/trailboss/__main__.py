"""`trailboss`, and `python -m trailboss`.

Nothing but the command line is imported here: `trailboss --version` and `trailboss reset` must not pay for the server.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    from trailboss.cli.app import run

    sys.exit(run(sys.argv))


if __name__ == "__main__":
    main()
