"""Generates native/_frame.c and native/_http.c, the CPython side of the C code.

Two small inputs for each (`NAME.cdef.txt`, what Python may see, and `NAME.csrc.c`, the include) and one
generated output that is committed, so that an ordinary `pip install .` needs a C compiler and nothing
else. `python native/build_modules.py` writes the files; with `--check` it only compares and exits with 1
where a committed file is not what the generator gives.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
#: Name of the inputs -> the module that is made of them.
MODULES = {"frame": "trailboss_worker._frame", "http": "trailboss._http"}


def generate(name: str) -> str:
    """Returns the generated C source of a module."""
    with tempfile.TemporaryDirectory() as folder:
        output = os.path.join(folder, "generated.c")
        subprocess.run(
            [
                *(sys.executable, "-m", "cffi.gen_src", "read-sources", MODULES[name]),
                *(os.path.join(HERE, f"{name}.cdef.txt"), os.path.join(HERE, f"{name}.csrc.c"), output),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with open(output, encoding="utf-8") as file:
            return file.read()


def is_current(name: str, path: str) -> bool:
    """Compares the committed file with what the generator gives, and prints where they differ."""
    with open(path, encoding="utf-8") as file:
        committed = file.read()
    generated = generate(name)
    if committed == generated:
        return True
    sys.stdout.writelines(
        difflib.unified_diff(
            committed.splitlines(True), generated.splitlines(True), "committed", "generated", n=1
        )
    )
    print(f"native/_{name}.c is out of date: run `python native/build_modules.py`", file=sys.stderr)
    return False


def main(arguments: list[str]) -> int:
    """Writes the files, or compares them; returns the exit code."""
    paths = {name: os.path.join(HERE, f"_{name}.c") for name in MODULES}
    if arguments == ["--check"]:
        return 0 if sum(is_current(name, path) for name, path in paths.items()) == len(paths) else 1
    if arguments:
        print("usage: build_modules.py [--check]", file=sys.stderr)
        return 2
    for name, path in paths.items():
        generated = generate(name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(generated)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
