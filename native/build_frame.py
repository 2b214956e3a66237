"""Generates native/_frame.c, the CPython side of the C frame codec.

Two small inputs (`frame.cdef.txt`, what Python may see, and `frame.csrc.c`, the include) and one
generated output that is committed, so that an ordinary `pip install .` needs a C compiler and nothing
else. `python native/build_frame.py` writes the file; with `--check` it only compares and exits with 1
where the committed file is not what the generator gives.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MODULE_NAME = "trailboss_worker._frame"
OUTPUT = os.path.join(HERE, "_frame.c")


def generate() -> str:
    """Returns the generated C source."""
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "_frame.c")
        subprocess.run(
            [
                *(sys.executable, "-m", "cffi.gen_src", "read-sources", MODULE_NAME),
                *(os.path.join(HERE, "frame.cdef.txt"), os.path.join(HERE, "frame.csrc.c"), output),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with open(output, encoding="utf-8") as file:
            return file.read()


def main(arguments: list[str]) -> int:
    """Writes the file, or compares it; returns the exit code."""
    generated = generate()
    if arguments == ["--check"]:
        with open(OUTPUT, encoding="utf-8") as file:
            committed = file.read()
        if committed != generated:
            sys.stdout.writelines(
                difflib.unified_diff(
                    committed.splitlines(True), generated.splitlines(True), "committed", "generated", n=1
                )
            )
            print("native/_frame.c is out of date: run `python native/build_frame.py`", file=sys.stderr)
            return 1
        return 0
    if arguments:
        print("usage: build_frame.py [--check]", file=sys.stderr)
        return 2
    with open(OUTPUT, "w", encoding="utf-8") as file:
        file.write(generated)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
