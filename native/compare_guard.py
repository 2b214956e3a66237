"""Compares the guard in C with the Python one, as far as it is pure: what lines, environments and a stat mean.

`compare_guard.py PROGRAM FOLDER...`: PROGRAM is native/show_guard.c, compiled. Every file of the folders (the corpus, or
whatever a fuzzer found) and some thousands of made-up ones are taken as each of the three, in pieces of several sizes.
Prints how many comparisons were made; the first difference ends the program with exit code 1.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys

from trailboss.workers.guard_process import LINE_SIZE_MAX, Orders, holds_mark, read_stat

#: Those that show_guard.c looks for.
MARKS = {b"TRAILBOSS_TOKEN=" + token for token in (b"lost", b"", b"other")}
SIZES = (1, 7, 4096)
SCRIPTS = 600
NUMBERS = (
    b"0",
    b"1",
    b"2",
    b"17",
    b"4242",
    b"4194303",
    b"4194304",
    b"99999999999999999999",
    b"007",
    b"",
    b"-3",
    b"5 ",
)


def lines_of(data: bytes, size: int) -> str:
    """What the reference makes of lines, as show_guard.c shows it, its words sorted."""
    orders, quits = Orders(), 0
    for at in range(0, len(data), size):
        for line in orders.lines(data[at : at + size]):
            quits += orders.take(line)
    words = {f"x{token.hex()}" for token in orders.tokens} | {f"+{group}" for group in orders.groups}
    return " ".join(sorted({*words, f"@{orders.cgroup.hex()}", f"q{quits}"}))


def expected(kind: str, data: bytes, size: int) -> str:
    """What the reference says of a case."""
    if kind == "l":
        return lines_of(data, size)
    if kind == "e":
        return str(int(holds_mark(data, MARKS)))
    is_alive, session = read_stat(data)
    return f"{int(is_alive)} {session}"


def shown(program: str, cases: list[tuple[str, bytes, int]]) -> list[str]:
    """What the C code says of all cases."""
    told = b"".join(kind.encode() + struct.pack("=II", len(data), size) + data for kind, data, size in cases)
    output = subprocess.run([program], input=told, stdout=subprocess.PIPE, check=True).stdout.decode()
    answers = output.split("\n")[:-1]
    return [
        " ".join(sorted(set(answer.split()))) if case[0] == "l" else answer
        for case, answer in zip(cases, answers, strict=True)
    ]


def line(choose: random.Random) -> bytes:
    """A line, mostly of those that the supervisor sends."""
    verb = choose.choice((b"+", b"+", b"+", b"-", b"-", b"x", b"@", b"q", b""))
    if verb in (b"+", b"-"):
        return verb + choose.choice((b"%d" % choose.randrange(2, 90), choose.choice(NUMBERS)))
    if verb == b"q":
        return choose.choice((b"q", b"q", b"q1"))
    size = choose.choice((0, 1, 16, 32, 300, 4096, LINE_SIZE_MAX - 1, LINE_SIZE_MAX, 3 * LINE_SIZE_MAX))
    rest = choose.choice((b"a", b"/", b"\xff", b"\0", b"5")) * (size if choose.random() < 0.2 else size % 40)
    return verb + rest + choose.choice((b"", b"%d" % choose.randrange(9)))


def made_up(choose: random.Random) -> dict[str, bytes]:
    """One of each kind."""
    entries = [*MARKS, b"TRAILBOSS_TOKEN=los", b"TRAILBOSS_TOKEN=lost2", b"PATH=/bin", b"", b"A" * 9000]
    weights = [1, 1, 1, 20, 20, 20, 20, 20]
    count = choose.randrange(8)
    name = bytes(choose.choice(b"() aZ1\n") for _ in range(choose.randrange(17)))
    fields = [choose.choice((b"S", b"R", b"Z", b"X", b"D", b"SS")), b"1", b"5", choose.choice(NUMBERS)]
    return {
        "l": b"\n".join(line(choose) for _ in range(choose.randrange(30))) + choose.choice((b"", b"\n")),
        "e": b"\0".join(choose.choices(entries, weights, k=count)) + choose.choice((b"", b"\0")),
        "s": b"7 (" + name + b") " + b" ".join(fields[: choose.randrange(5)]) + b" 0 -1\n",
    }


def main(arguments: list[str]) -> int:
    """Compares all; returns the exit code."""
    program, *folders = arguments
    cases: list[tuple[str, bytes, int]] = []
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
            # The kernel separates the fields of a stat by blanks alone.
            kinds = "les" if not set(b"\t\v\f\r\n") & set(data.rpartition(b")")[2][:-1]) else "le"
            cases += [(kind, data, size) for kind in kinds for size in SIZES]
    for seed in range(SCRIPTS):
        cases += [(kind, data, SIZES[seed % 3]) for kind, data in made_up(random.Random(seed)).items()]
    for case, answer in zip(cases, shown(program, cases), strict=True):
        if answer != expected(*case):
            print(f"{case}:\n  C:      {answer}\n  Python: {expected(*case)}")
            return 1
    print(f"the guards in C and Python agree in {len(cases)} comparisons")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
