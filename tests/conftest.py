"""What holds for every test: Hypothesis draws the same examples in continuous integration, new ones everywhere else; and
programs that tests start do not inherit that signals are ignored, as they are under nohup and for a shell's background."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# A new example that fails belongs to whoever can look at it, not to the next unrelated change.
settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("here", print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        # A handler, unlike SIG_IGN, is not passed on: what is executed begins with the default.
        signal.signal(_number, lambda _number, _frame: None)
