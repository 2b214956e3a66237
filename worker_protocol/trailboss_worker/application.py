"""Finding the application that `module:name` stands for, and saying why it cannot be served.

Shared by the WSGI and the ASGI gateway. The working directory and the folders of --pythonpath go to the front of
the import path, in this order, as `python -m` and other servers have it. What an import raises is the start error:
its traceback goes to standard error once, without the frames of this package, and the process ends before it has
promised anything to the server.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

#: Names tried where the target is a module alone.
NAMES = ("application", "app")


#: The answer to a request whose application failed.
FAILED_BODY = b"Internal Server Error\n"
FAILED_HEADERS = [("Content-Type", "text/plain; charset=utf-8")]
#: Why a request is refused whose body is a form tree and no form any more.
FORM_PARSED = (
    "the server has parsed the form of this request, the application needs it as it was sent: "
    "set http.raw_body to true"
)


class ApplicationOptions(NamedTuple):
    """What `trailboss-worker wsgi` or `asgi` was told."""

    target: str
    factory: bool = False
    directory: str = "."
    paths: tuple[str, ...] = ()
    root_path: str = ""
    lifespan: str = "auto"


class NoApplication(Exception):
    """The target names nothing that could be called; the text says what was looked for."""


def load_application(options: ApplicationOptions) -> Any:
    """The application object. Raises NoApplication, and whatever importing it or its factory raises."""
    os.chdir(options.directory)
    sys.path[:0] = [os.getcwd(), *(os.path.abspath(path) for path in options.paths)]
    module_name, colon, attributes = options.target.partition(":")
    import importlib

    module = importlib.import_module(module_name)
    value = _find(module, attributes) if colon else _guess(module)
    if options.factory:
        if not callable(value):
            raise NoApplication(f"{options.target} is no factory but {type(value).__name__}")
        value = value()
    if not callable(value):
        raise NoApplication(f"{options.target} is no application but {type(value).__name__}")
    return value


def _find(module: Any, attributes: str) -> Any:
    value = module
    for attribute in attributes.split("."):
        try:
            value = getattr(value, attribute)
        except AttributeError:
            raise NoApplication(f"{module.__name__} ({_place(module)}) has no {attributes!r}") from None
    return value


def _guess(module: Any) -> Any:
    for name in NAMES:
        value = getattr(module, name, None)
        if value is not None:
            return value
    wanted = " nor ".join(map(repr, NAMES))
    raise NoApplication(
        f"{module.__name__} ({_place(module)}) has neither {wanted}; name the application: {module.__name__}:NAME"
    )


def _place(module: Any) -> str:
    return getattr(module, "__file__", None) or "a module without a file"


def prepare_development() -> bool:
    """Whether errors are to be shown in the browser; frameworks that are imported from now on let them pass then."""
    if os.environ.get("TRAILBOSS_DEV") != "1":
        return False
    # Flask turns an exception into a page that says nothing, unless it is in debug mode, which it reads from here.
    os.environ.setdefault("FLASK_DEBUG", "1")
    return True


def shown_failure(error: BaseException, request: str) -> tuple[list[tuple[str, str]], bytes]:
    """Headers and body of the page that shows an error, for development mode alone."""
    from trailboss_worker.error_page import CONTENT_TYPE, page_of_error

    return [("Content-Type", CONTENT_TYPE), ("Cache-Control", "no-store")], page_of_error(error, request)


def settle_memory() -> None:
    """Tell the collector, before the first request, that what was imported lives for ever: it never looks again."""
    import gc

    gc.collect()
    gc.freeze()


def complain(text: str) -> int:
    """Say on standard error why this worker ends; gives its exit code."""
    print(f"trailboss-worker: {text}", file=sys.stderr, flush=True)
    return 1


def print_failure(text: str, error: BaseException) -> None:
    """Write what was going on and the traceback of an error to standard error, in one piece.

    The first frames, of this package and of importlib, are left out: they say nothing about the error.
    """
    import importlib
    import traceback

    own = (os.path.dirname(os.path.abspath(__file__)), os.path.dirname(importlib.__file__ or ""))
    place = error.__traceback__
    while place is not None:
        file = place.tb_frame.f_code.co_filename
        if not file.startswith("<frozen importlib") and os.path.dirname(os.path.abspath(file)) not in own:
            break
        place = place.tb_next
    lines = traceback.format_exception(type(error), error, place)
    sys.stderr.write(f"{text}\n{''.join(lines)}")
    sys.stderr.flush()
