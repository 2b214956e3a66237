"""`python -m trailboss_worker` and the console command `trailboss-worker`."""

from __future__ import annotations

import sys

from trailboss_worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
