"""One PostgreSQL server for a team: the databases of Prefect and MLflow, and how they are reached.

The password is in no address, so in no process's arguments and no log: Prefect's and MLflow's
drivers both read libpq's own PGPASSWORD, or else ~/.pgpass.
"""

from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr

from pipeline.errors import InputError

NAMES = ("prefect", "mlflow")  # two, because each keeps the version of its tables in one place
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Database:
    """A PostgreSQL server and who logs in.

    Attributes:
        host: name or address.
        port: of the server.
        user: role that logs in.
        password: None = PGPASSWORD of this process, or ~/.pgpass.
    """

    host: str
    port: int
    user: str
    password: str | None = field(repr=False)

    @property
    def place(self) -> str:
        """Who and where, without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{quote(self.user, safe='')}@{host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that a server needs to log in."""
        return {} if self.password is None else {"PGPASSWORD": self.password}

    def url(self, driver: str, name: str) -> str:
        """Return SQLAlchemy's address of one database, without the password."""
        return f"postgresql+{driver}://{self.place}/{name}"


def read_database(url: SecretStr) -> Database:
    """Take the address apart that `servers.database` holds; it was checked when it was read."""
    parts = urlsplit(url.get_secret_value())
    return Database(
        parts.hostname or "",
        parts.port or 5432,
        unquote(parts.username or ""),
        unquote(parts.password) if parts.password else None,
    )


def make_databases(database: Database) -> list[str]:
    """Make those of the two databases that are missing, and return their names.

    Raises:
        InputError: the driver is not installed, the server cannot be reached or refuses the log-in,
            or the role may not make databases.
    """
    try:
        import psycopg
        from psycopg import errors, sql
    except ImportError as error:
        raise InputError(
            f"servers.database needs PostgreSQL's driver ({error}); install it: "
            "pip install 'replenish[team]'"
        ) from None
    try:
        connection = psycopg.connect(
            host=database.host,
            port=database.port,
            user=database.user,
            password=database.password,
            dbname="postgres",
            connect_timeout=_CONNECT_SECONDS,
            client_encoding="UTF8",  # of an SQL_ASCII server, names would come as bytes
            autocommit=True,
        )
    except psycopg.OperationalError as error:
        raise InputError(
            f"servers.database: {database.place} cannot be used ({_line(error)}); is the server "
            "up, and is the password in PGPASSWORD or ~/.pgpass?"
        ) from None
    made = []
    with connection:
        there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in (name for name in NAMES if name not in there):
            # Prefect and MLflow keep any text, whatever the server's own encoding.
            order = sql.SQL("CREATE DATABASE {} ENCODING 'UTF8' TEMPLATE template0")
            try:
                connection.execute(order.format(sql.Identifier(name)))
            except errors.DuplicateDatabase:  # by another machine, a moment ago
                continue
            except errors.InsufficientPrivilege:
                raise InputError(
                    f"servers.database: {database.user} may not make the database {name}; let the "
                    f"server's owner run: createdb --owner={database.user} --encoding=UTF8 "
                    f"--template=template0 {name}"
                ) from None
            made.append(name)
    return made


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
