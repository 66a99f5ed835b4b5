"""The command line: `likeness --help`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import OperationalError

from api_schemas.defaults import MODEL
from service.settings import ServiceSettings
from service.verify import verify
from storage import schema, teams
from storage.database import Database
from storage.embedded import EmbeddedServerError
from storage.settings import NoServersError

app = typer.Typer(
    name="likeness",
    help="Teach an encoder what 'alike' means to you, then use it.\n\n"
    "On one machine, `likeness up` runs everything. On several, each runs a role: `likeness serve`, "
    "`likeness worker` and one `likeness reconcile`, all with the same DATABASE_URL and REDIS_URL. "
    "Every option can also be set in the environment; the README has the table.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
keys_app = typer.Typer(help="API keys: every request under /v1 shows one.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

console = Console()
errors = Console(stderr=True)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where files, models and the embedded databases are kept. [default: likeness-data]"),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. [default: 8080]")]


@app.command()
def up(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    workers: Annotated[int, typer.Option(min=0, help="Training workers. One uses all GPUs that it sees.")] = 1,
) -> None:
    """Run everything on this machine: databases, API, inference, workers.

    PostgreSQL and Valkey are started from their wheels unless DATABASE_URL and REDIS_URL point elsewhere. The
    first API key is written to DATA_DIR/admin.key. Ctrl-C drains and stops it all; starting again on the same
    directory goes on where it was: an interrupted training is queued again.
    """
    from service.up import UpError
    from service.up import up as run

    try:
        run(_settings(data_dir=data_dir, host=host, port=port), workers=workers, console=console)
    except (UpError, EmbeddedServerError) as error:
        _fail(str(error))


@app.command()
def serve(
    role: Annotated[
        Literal["all", "api", "inference"] | None, typer.Option(help="What to serve. [default: all]")
    ] = None,
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Serve HTTP: the API, inference, or both.

    The role `api` (files, jobs, models) needs no torch; `inference` (embeddings, similarity) does. Needs DATABASE_URL
    and REDIS_URL, and a database that `likeness migrate` has brought up to date.
    """
    from service.serve import serve as run

    sys.exit(run(_settings(role=role, data_dir=data_dir, host=host, port=port)))


@app.command()
def worker(
    queue: Annotated[Literal["gpu", "cpu"], typer.Option(help="gpu trains; cpu validates files.")] = "gpu",
    data_dir: DataDir = None,
) -> None:
    """Work on one queue. On `gpu` a job trains on all GPUs that its worker sees; on `cpu` files are validated.

    SIGTERM gives the running job back to the queue and ends within seconds; a second one doesn't wait for its step.
    """
    _become(["workers.worker", queue], data_dir)


@app.command()
def reconcile(data_dir: DataDir = None) -> None:
    """Mend what crashes leave behind: jobs whose worker died, tasks the queue lost.

    Run one of these, or several: they elect a leader.
    """
    _become(["workers.reconciler"], data_dir)


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database's schema up to date. Safe to run by several at once, and again."""
    with _database(data_dir) as database:
        console.print(f"The schema is at revision {schema.migrate(database)}.")


app.command()(verify)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Who or what will use it, for your own memory.")],
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is kept."""
    with _database(data_dir) as database, database.session(teams.DEFAULT_TEAM) as session:
        row, key = teams.create_key(session, name)
    errors.print(f"Key {row.id} for {name!r}. It is shown only now:")
    # Alone on standard output, so that a script can take it.
    typer.echo(key)


@keys_app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List the keys: names and dates, never the keys themselves."""
    with _database(data_dir) as database, database.session(teams.DEFAULT_TEAM) as session:
        rows = teams.list_keys(session)
    table = Table("id", "name", "key", "made", "state")
    for row in rows:
        table.add_row(
            row.id, row.name, row.hint, f"{row.created_at:%Y-%m-%d}", "revoked" if row.revoked_at else "valid"
        )
    console.print(table)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id that `likeness keys list` shows, key-…")],
    data_dir: DataDir = None,
) -> None:
    """Make a key worthless, at once."""
    with _database(data_dir) as database, database.session(teams.DEFAULT_TEAM) as session:
        found = teams.revoke_key(session, key_id)
    if not found:
        _fail(f"There is no key {key_id!r}; `likeness keys list` shows those there are.")
    console.print(f"Key {key_id} is revoked.")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A file of training rows.", show_default=False)],
    evaluation: Annotated[Path | None, typer.Option(help="A file of evaluation rows, to be compared with it.")] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="FILE is a relevance file (BEIR's qrels) on the documents of this one.")
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="The queries that go with --corpus.")] = None,
    data_format: Annotated[
        str | None, typer.Option("--format", help="What its rows are, such as pairs or labels. [default: recognised]")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="Which column plays a role, as anchor=title. Repeatable."),
    ] = None,
    model: Annotated[str, typer.Option(help="The encoder that would be trained.")] = MODEL,
    batch_size: Annotated[int | None, typer.Option(min=2, max=65536, help="Rows of a batch. [default: chosen]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, as the API answers it.")] = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Don't measure time and memory of a step.")] = False,
) -> None:
    """Look at a file before training on it: what is wrong with it, by row and remedy, and what would be trained.

    Needs no server. Ends with 0 if the file can be trained on, 1 if it can't, 2 if it can't be read.
    """
    options: dict[str, object] = {"--evaluation": evaluation, "--corpus": corpus, "--queries": queries}
    options |= {"--format": data_format, "--model": model, "--batch-size": batch_size}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    given += [f"--column={each}" for each in column or []]
    given += [name for name, is_set in {"--json": as_json, "--no-probe": no_probe}.items() if is_set]
    _become(["workers.inspect", *given, "--", str(file)], None)


@app.command()
def demo(
    data_dir: DataDir = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Train only so many steps.")] = None,
    search: Annotated[
        int | None, typer.Option(min=2, max=100, metavar="TRIALS", help="Find the temperature by so many trainings.")
    ] = None,
) -> None:
    """See the whole thing work: an encoder learns from the documentation of this very Python.

    Starts `likeness up` if none runs on the data directory, uploads a dataset, trains on it, and compares the
    encoder before and after on texts it has never seen. Takes a few minutes on a laptop.
    """
    from service.demo.command import demonstrate

    settings = _settings(data_dir=data_dir)
    is_better = demonstrate(settings, console=console, max_steps=max_steps, search_trials=search)
    sys.exit(0 if is_better else 1)


def main() -> None:
    """The entry point: whatever goes wrong for a known reason is one sentence, not a traceback."""
    try:
        app()
    except (NoServersError, schema.SchemaBusyError) as error:
        _fail(str(error))
    except OperationalError as error:
        _fail(f"The database can't be reached: {str(error.orig).strip()}")
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"The setting {'.'.join(map(str, first['loc']))} is wrong: {first['msg']} (it is {first['input']!r}).")


def _settings(**given: object) -> ServiceSettings:
    """The settings: what the command line gives, then the environment, then the defaults."""
    return ServiceSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _become(module: list[str], data_dir: Path | None) -> NoReturn:
    """Turn into another module's process: the HTTP side doesn't import the queue side, it only names it."""
    env = dict(os.environ)
    if data_dir is not None:
        env["LIKENESS_DATA_DIR"] = str(data_dir)
    os.execve(sys.executable, [sys.executable, "-m", *module], env)  # noqa: S606 — no shell is meant


@contextmanager
def _database(data_dir: Path | None) -> Iterator[Database]:
    settings = _settings(data_dir=data_dir).with_running_servers()
    database = Database(settings.required_database_url, pool_size=1)
    try:
        yield database
    finally:
        database.dispose()


def _fail(message: str) -> NoReturn:
    errors.print(f"[bold red]Error:[/] {message}", highlight=False)
    sys.exit(2)
