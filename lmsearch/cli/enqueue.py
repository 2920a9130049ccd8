"""`lmsearch enqueue`."""

import click

from lmsearch.cli.options import command_text, parse_storage, spell_value, storage_option
from lmsearch.errors import ConfigError


@click.command()
@click.argument("study")
@click.argument("values", nargs=-1, metavar="NAME=VALUE…")
@storage_option
def enqueue(study: str, values: tuple[str, ...], storage: str) -> None:
    """Add one trial with values of your own; it is begun before the others.

    Values that are not named come from the study's sampler.

    \b
    Example:
        lmsearch enqueue default model.output_dropout=0.4 train.learning_rate=5e-3
    """
    from lmsearch.search.begin import enqueue as owe
    from lmsearch.search.begin import workers_at_work
    from lmsearch.spec import parse_value
    from lmsearch.store.storage import open_storage

    named: dict[str, object] = {}
    for text in values:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not NAME=VALUE; write model.output_dropout=0.4")
        named[path.strip()] = parse_value(value.strip())
    url = parse_storage(storage)
    opened = open_storage(url)
    info, tickets = owe(opened, study, named)
    fixed = ", ".join(f"{path} = {spell_value(value)}" for path, value in tickets[-1].fixed.items())
    click.echo(f"{study} owes {len(tickets)} trials now; the new one has {fixed or 'no fixed values'}")
    if not workers_at_work(opened, info):
        click.echo(f"no worker is at work; run it with: {command_text(['lmsearch', 'worker', study], url)}")
