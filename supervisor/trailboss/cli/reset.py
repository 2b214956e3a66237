"""`trailboss reset`: replace the workers of some or all plugins, all at the same time.

Silent with -s unless it failed, because Laravel Octane takes any output on standard error for an error. A reset that
failed is exit code 1 with its reason (RoadRunner says success in that case).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import click

from trailboss.cli.client import CommandFailed, connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean, json_flag, print_json

__all__ = ["command"]


@click.command("reset")
@click.argument("plugins", nargs=-1, metavar="[PLUGIN]...")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, plugins: tuple[str, ...], as_json: bool) -> None:
    """Replace the workers of the named plugins, or of all: new ones first, then the old ones finish."""
    settings = settings_of(context)
    chatty = not (settings.silent or as_json)
    with connect(settings) as rpc:
        from trailboss_worker.sdk import Resetter

        names = plugins or tuple(Resetter(rpc).list())
        failures: dict[str, str] = {}
        if chatty:
            for name in names:
                click.echo(f"resetting plugin: [{clean(name)}]")
        with ThreadPoolExecutor(max_workers=max(1, len(names))) as threads:
            outcomes = {name: threads.submit(reset, rpc.address, name) for name in names}
            for name, outcome in outcomes.items():
                failure = outcome.result()
                if failure:
                    failures[name] = failure
                elif chatty:
                    click.echo(f"plugin reset: [{clean(name)}]")
    if as_json:
        print_json({"reset": [name for name in names if name not in failures], "failed": failures})
        if failures:
            context.exit(1)
    elif failures:
        raise CommandFailed(
            "\n".join(f"plugin not reset: [{clean(name)}]: {clean(why)}" for name, why in failures.items())
        )


def reset(address: str, name: str) -> str:
    """Reset one plugin over a connection of its own; return why that failed, or ""."""
    from trailboss_worker.sdk import RPC, Resetter, RpcError, ServiceError

    try:
        with RPC(address) as rpc:
            Resetter(rpc).reset(name)
    except ServiceError as error:
        return error.text
    except RpcError as error:
        return str(error)
    return ""
