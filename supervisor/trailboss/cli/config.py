"""`trailboss config`: the configuration as it is, its defaults, its schema."""

from __future__ import annotations

import click

from trailboss.cli.client import ConfigurationWrong
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import json_flag, print_json

__all__ = ["command"]


@click.command("config")
@click.option("--defaults", is_flag=True, help="Every key with its default and its meaning, as YAML.")
@click.option("--schema", is_flag=True, help="The JSON Schema, for editors and CI.")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, defaults: bool, schema: bool, as_json: bool) -> None:
    """Print the merged configuration without its secrets; or --defaults, or --schema."""
    if defaults and schema:
        raise click.UsageError("give either --defaults or --schema")
    if defaults:
        from trailboss.config.defaults import defaults_yaml

        if as_json:
            import yaml

            print_json(yaml.safe_load(defaults_yaml()))
        else:
            click.echo(defaults_yaml(), nl=False)
        return
    if schema:
        from trailboss.config.defaults import json_schema

        print_json(json_schema())
        return
    from trailboss.config import ConfigError, redacted

    try:
        config = settings_of(context).load()
    except ConfigError as error:
        raise ConfigurationWrong(str(error)) from error
    values = redacted(config.source.merged)
    if as_json:
        print_json(values)
    else:
        import yaml

        click.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), nl=False)
