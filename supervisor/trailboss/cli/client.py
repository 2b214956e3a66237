"""How a command reaches the running server: the same configuration, the same address, one clear line when nobody answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from trailboss.cli.options import Settings

if TYPE_CHECKING:
    from trailboss_worker.sdk import RPC

__all__ = ["CommandFailed", "ConfigurationWrong", "connect", "rpc_address"]

#: A server on this machine answers at once; one elsewhere within this time or not at all.
CONNECT_TIMEOUT_SECONDS = 5.0


class CommandFailed(click.ClickException):
    """The command could not be done; shown as one line, exit code 1."""

    exit_code = 1

    def show(self, file: object = None) -> None:
        """Print the line."""
        click.echo(self.format_message(), err=True)


class ConfigurationWrong(CommandFailed):
    """The configuration cannot be used; one line per problem, exit code 2."""

    exit_code = 2


def rpc_address(settings: Settings) -> str:
    """Return where the server of this configuration listens. Raises ConfigurationWrong, or CommandFailed if RPC is off.

    Without a configuration file there are still `-o rpc.listen=…` and the default socket.
    """
    from trailboss.config import ConfigError
    from trailboss.config.values import parse_address
    from trailboss.rpc.address import default_socket_path, exported_address

    try:
        config = settings.load(require_version=False)
    except ConfigError as error:
        if settings.config is not None or not no_default_file(settings):
            raise ConfigurationWrong(str(error)) from error
        listen = overridden_listen(settings)
    else:
        if not config.rpc.enabled:
            raise CommandFailed(
                f"{config.source.path}: rpc.enabled is false, so no command can reach the server"
            )
        listen = config.rpc.listen
    if not listen:
        return f"unix://{default_socket_path(os.environ, os.geteuid())}"
    return exported_address(*parse_address(listen))


def no_default_file(settings: Settings) -> bool:
    """Say whether no configuration is named and none of the default names exists here."""
    from trailboss.config.load import DEFAULT_FILES

    return not any(os.path.exists(os.path.join(settings.workdir or "", name)) for name in DEFAULT_FILES)


def overridden_listen(settings: Settings) -> str:
    """Return rpc.listen of the -o flags, or "". Raises ConfigurationWrong when it is no address."""
    import tempfile

    from trailboss.config import ConfigError, LoadRequest, load

    with tempfile.NamedTemporaryFile(suffix=".yaml") as empty:
        request = LoadRequest(path=empty.name, overrides=tuple(settings.overrides), require_version=False)
        try:
            return load(request).rpc.listen
        except ConfigError as error:
            raise ConfigurationWrong(str(error)) from error


@contextmanager
def connect(settings: Settings) -> Iterator[RPC]:
    """Give a client of the server; what goes wrong with its calls becomes one line and exit code 1."""
    from trailboss_worker.sdk import RPC, CallTimeout, ConnectionLost, RpcError, ServiceError

    address = rpc_address(settings)
    try:
        knock(address)
    except OSError as error:
        raise CommandFailed(unreachable(settings, address, error.strerror or str(error))) from error
    try:
        with RPC(address) as rpc:
            yield rpc
    except ConnectionLost as error:  # somebody did answer the knock
        raise CommandFailed(closed_at_once(address, str(error))) from error
    except CallTimeout as error:
        raise CommandFailed(str(error)) from error
    except ServiceError as error:
        raise CommandFailed(error.text) from error
    except RpcError as error:
        raise CommandFailed(str(error)) from error


def knock(address: str) -> None:
    """Connect once and leave: the client itself tries for a second, which is right for a worker and not at a prompt.

    Raises OSError.
    """
    import socket

    from trailboss.config.values import parse_address

    scheme, host, port = parse_address(address)
    if scheme == "tcp":
        socket.create_connection((host, port), CONNECT_TIMEOUT_SECONDS).close()
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_TIMEOUT_SECONDS)
        connection.connect(host)


def closed_at_once(address: str, reason: str) -> str:
    """Return the one line for a server that takes a connection and closes it, with the likely reason."""
    from trailboss.config.values import parse_address

    scheme, path, _ = parse_address(address)
    likely = "the server runs as another user, who alone may call it (root too is refused), or it is ending"
    if scheme == "unix":
        try:
            owner = os.stat(path).st_uid
        except OSError:
            owner = os.geteuid()
        if owner != os.geteuid():
            likely = (
                f"the server runs as another user (uid {owner}, you are uid {os.geteuid()}); "
                f"run this command as that user"
            )
    return f"the server at {address} closed the connection ({reason}); likely: {likely}"


def unreachable(settings: Settings, address: str, reason: str) -> str:
    """Return the one line for a server that does not answer."""
    option = f" -c {settings.config}" if settings.config else ""
    return (
        f"no server answers at {address} ({reason}); start one with `{settings.program} serve{option}`, "
        f"or name another with -c FILE or -o rpc.listen=ADDRESS"
    )
