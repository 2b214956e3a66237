"""``python -m trailboss.testing.simulation SEED [SEED]``: one seed with its trace, or every seed of a range.

A seed that fails is shrunk, and the shortest plan found is printed; the exit code is 1 then. ``--sabotage NAME`` breaks
the server on purpose.
"""

from __future__ import annotations

import argparse
import sys
import time

from trailboss.testing.simulation.run import SABOTAGES, SimulationResult, shrink, simulate


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m trailboss.testing.simulation", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int, nargs="?", help="one behind the last seed of a range")
    parser.add_argument("--sabotage", choices=sorted(SABOTAGES), default="")
    parser.add_argument("--trace", action="store_true", help="print the end of the trace")
    options = parser.parse_args()
    began, hours, failed = time.monotonic(), 0.0, 0
    end = options.end if options.end is not None else options.first + 1
    for seed in range(options.first, end):
        result = simulate(seed, sabotage=options.sabotage)
        hours += result.virtual_seconds / 3600
        if result.violations:
            failed += 1
            _report(shrink(result, options.sabotage), options.trace)
        elif end - options.first == 1:
            print("\n".join(result.trace) if options.trace else result.plan)
            print(
                f"seed {seed}: {result.events} events, {result.virtual_seconds:.0f} s, {result.trace_hash[:16]}"
            )
    seconds = time.monotonic() - began
    print(f"{end - options.first} seeds, {failed} failed, {hours:.1f} virtual hours in {seconds:.1f} s")
    return 1 if failed else 0


def _report(result: SimulationResult, with_trace: bool) -> None:
    if with_trace:
        print("\n".join(result.trace))
    for violation in result.violations[:5]:
        print(violation)
    print(f"shortest plan found: {result.plan}\n")


if __name__ == "__main__":
    sys.exit(main())
