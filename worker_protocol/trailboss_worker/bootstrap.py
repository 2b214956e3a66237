"""Starts `trailboss-worker` in an interpreter that knows nothing of Trailboss.

`/path/to/venv/bin/python .../trailboss_worker/bootstrap.py jobs module:handler` loads this package from
where this file lies, by location. Neither the folder that holds the package (a site-packages full of other
people's versions) nor the package's own folder (whose `jobs` would hide the application's) ends up on the
import path. Needs CPython 3.9 and the standard library; works with -I and -S.
"""

from __future__ import annotations

import os
import sys

PACKAGE = "trailboss_worker"


def load_package() -> None:
    """Make `trailboss_worker` importable, from this folder, whatever else is installed under that name."""
    import importlib.util

    folder = os.path.dirname(os.path.realpath(__file__))
    spec = importlib.util.spec_from_file_location(
        PACKAGE, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is no package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def forget_script_folder() -> None:
    """Take the folder of this file off the import path, where the interpreter puts it for a script."""
    folder = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == folder:
        del sys.path[0]


def main() -> int:
    """Load the package and run its command line; gives the exit code."""
    if sys.version_info < (3, 9):  # noqa: UP036 - whatever interpreter the configuration names runs this
        print(f"trailboss-worker needs Python 3.9 or newer, {sys.executable} is older", file=sys.stderr)
        return 1
    forget_script_folder()
    load_package()
    from trailboss_worker.cli import main as run_command_line

    return run_command_line()


if __name__ == "__main__":
    sys.exit(main())
