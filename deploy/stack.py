#!/usr/bin/env python3
"""The embedded stack: all of GreenGrader on this machine, its state in `.greengrader/`.

    .venv/bin/python deploy/stack.py up        starts what does not run yet; returns when all of it is ready
    .venv/bin/python deploy/stack.py down      stops what `up` started; all data stays
    .venv/bin/python deploy/stack.py run       up, then one sample submission, followed to its graded result
    .venv/bin/python deploy/stack.py status    what runs, and where
    .venv/bin/python deploy/stack.py with-engine COMMAND …    a command with a container engine and base image at hand

A database, broker or engine that the settings name is used instead of one of our own, and never stopped.
Exit codes: 0 done · 1 the sample was not graded · 2 settings · 3 a service does not start · 4 schema version.
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import daemons
from daemons import PROJECT, Daemon
from engine import Engine, engine_version, ensure_base_image
from greengrader import config
from greengrader.config import PREFIX, Settings
from greengrader.db import Store
from greengrader.errors import GreenGraderError, ServiceUnavailable, SettingsError
from places import LOOPBACK
from processes import write_private
from services import Broker, Postgres

REGISTER_LIMIT_S = 60
REPORT_EVERY_S = 2.0
STOP_MARGIN_S = 30
SAMPLE, SAMPLE_ASSIGNMENT = "python_unittest", 1


class Stack:
    """Services and daemons of one checkout."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.state = settings.state_dir.absolute()
        self.worker = settings.worker_name or "worker-1"
        self.postgres = Postgres(self.state / "postgres")
        self.broker = Broker(self.state / "mosquitto", ("submit", "hub", self.worker))
        self.engine = Engine(self.state)
        # Whoever has sourced our own env file names our own services: that is no other address.
        self.own_postgres = not settings.database_url or self.postgres.password in settings.database_url
        self.own_broker = not settings.mqtt_url or self.broker.password("hub") in settings.mqtt_url
        self.base_image = settings.base_image if "base_image" in settings.model_fields_set else None

    # ------------------------------------------------------------------------------------------ where things are
    @property
    def database_url(self) -> str:
        return self.postgres.url if self.own_postgres else self.settings.database_url

    def mqtt_url(self, account: str) -> str:
        return self.broker.url_for(account) if self.own_broker else self.settings.mqtt_url

    def addresses(self) -> dict[str, str]:
        """{setting: value} of the hub, and of whoever submits."""
        own = {"submit_host": LOOPBACK, "submit_port": str(self.broker.port), "submit_user": "submit"}
        own["submit_password"] = self.broker.password("submit")
        given = {name: str(getattr(self.settings, name)) for name in own}
        hub = {"database_url": self.database_url, "mqtt_url": self.mqtt_url("hub"), "state_dir": str(self.state)}
        return hub | (own if self.own_broker else given)

    def hub(self) -> list[Daemon]:
        known = daemons.environment(self.settings, **self.addresses(), base_image=self.base_image or "")
        scripts = (("ingest.py",), ("dispatcher.py", "--watch"), ("scheduler.py",), ("receiver.py",))
        return [Daemon(command, self.state, known) for command in scripts]

    def executor(self) -> Daemon:
        patience_s = self.settings.stop_grace_s + STOP_MARGIN_S
        return Daemon(("execute.py",), self.state, self.worker_environment(), patience_s)

    def worker_environment(self) -> dict[str, str]:
        """What the worker knows: its own account, no database."""
        place = {"mqtt_url": self.mqtt_url(self.worker), "worker_name": self.worker, "state_dir": str(self.state)}
        return daemons.environment(self.settings, **place, base_image=self.base_image or "")

    # ------------------------------------------------------------------------------------------------ up and down
    def up(self) -> None:
        """Everything runs and is ready afterwards; what runs already is left alone."""
        if self.own_postgres:
            with step("postgres"):
                self.postgres.start()
            say("postgres", f"{LOOPBACK}:{self.postgres.port}, pid {self.postgres.pid}")
        if self.own_broker:
            with step("mosquitto"):
                self.broker.start()
            say("mosquitto", f"{LOOPBACK}:{self.broker.port}, pid {self.broker.pid}")
        with step("docker"):
            self.engine.start()
        say("docker", f"engine {engine_version()}" + (", started here" if self.engine.process.pid else ""))
        self.base_image = ensure_base_image(self.base_image)
        say("base image", self.base_image)
        with Store.connect(self.database_url, application="stack", check_schema=False) as store:
            store.apply_schema()
        self.write_env()
        with step("daemons"):
            daemons.start(self.hub())
            if self.executor().process.pid is None:
                self.register()
            daemons.start([self.executor()])
        for daemon in (*self.hub(), self.executor()):
            say(daemon.name, f"pid {daemon.process.pid}, {daemon.process.log}")

    def register(self) -> None:
        """Makes this machine known as a worker."""
        command = [sys.executable, str(PROJECT / "register.py")]
        done = subprocess.run(
            command,
            cwd=self.state,
            env=self.worker_environment(),
            capture_output=True,
            text=True,
            timeout=REGISTER_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            raise ServiceUnavailable(f"register.py: {(done.stdout + done.stderr).strip()}")

    def down(self) -> None:
        """Nothing of ours runs afterwards; in reverse order, so that each can still hand on what it holds."""
        stops: list[tuple[str, Callable[[], bool]]] = [("execute", self.executor().stop)]
        stops += [(daemon.name, daemon.stop) for daemon in reversed(self.hub())]
        stops += [("mosquitto", self.broker.stop), ("postgres", self.postgres.stop), ("docker", self.engine.stop)]
        stopped = []
        for name, stop in stops:
            with step(name, "stopping"):
                if stop():
                    stopped.append(name)
        print(f"stopped: {', '.join(stopped)}; all data stays in {self.state}" if stopped else "nothing was running")

    def write_env(self) -> None:
        """.greengrader/env, for `. .greengrader/env` in a shell."""
        values = self.addresses() | {"base_image": self.base_image or ""}
        lines = [f"export {PREFIX}{name.upper()}={shlex.quote(value)}" for name, value in values.items()]
        lines.append(f'export PATH={shlex.quote(str(PROJECT / ".venv/bin"))}:"$PATH"')
        write_private(self.state / "env", "\n".join(lines) + "\n")

    def say_how_to_submit(self) -> None:
        values = self.addresses()
        print(f"ready. `. {os.path.relpath(self.state / 'env')}` sets up a shell: greengrader's settings and programs.")
        if values["submit_host"]:
            print("For the snippet at the end of run_autograder (README, Submitting):")
            for name in ("host", "port", "user", "password"):
                print(f"    {name.upper()}={shlex.quote(values[f'submit_{name}'])}")

    def status(self) -> None:
        """Prints what runs of ours, and where it logs."""
        processes = [self.postgres.process, self.broker.process, self.engine.process]
        for process in (*processes, *(daemon.process for daemon in (*self.hub(), self.executor()))):
            say(process.name, f"pid {process.pid}, {process.log}" if process.pid else "-")

    # -------------------------------------------------------------------------------------------------- a sample
    def run(self) -> int:
        """0 if the sample submission came back graded, as is printed on its way."""
        values = self.addresses()
        if not values["submit_host"]:
            raise SettingsError(f"{PREFIX}SUBMIT_HOST, _PORT, _USER and _PASSWORD are not set: nowhere to publish to")
        os.environ[f"{PREFIX}BASE_IMAGE"] = self.base_image or ""
        sys.path.append(str(PROJECT))
        from tests.samples import fork

        account = values["submit_user"], values["submit_password"]
        snippet = fork.readme_snippet("plain", values["submit_host"], int(values["submit_port"]), *account)
        submission_id = int(time.time())
        sample = PROJECT / "tests/samples" / SAMPLE
        print(f"\nsubmission {submission_id}: {SAMPLE}, graded as on Gradescope and forked by the README's snippet")
        with step("gradescope", "building its image and running it"):
            forked = fork.fork(
                sample, "partial", snippet=snippet, submission_id=submission_id, assignment_id=SAMPLE_ASSIGNMENT
            )
        if forked.results is None or forked.exit_status != 0:
            raise ServiceUnavailable(
                f"run_autograder with the snippet ended with {forked.exit_status}:\n{forked.stdout}"
            )
        say("gradescope", f"graded and published in {forked.seconds:.1f} s")
        command = [sys.executable, "-m", "greengrader", "status", str(submission_id), "--follow"]
        known = daemons.environment(self.settings, **values)
        with step("greengrader", "building the autograder's image, if it is new, and running it"):
            return subprocess.run(command, cwd=self.state, env=known, check=False).returncode


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """One `up` or `down` of a checkout at a time."""
    state.mkdir(parents=True, exist_ok=True)
    owner = state.stat().st_uid
    if owner != os.geteuid():
        raise SettingsError(f"{state} was made by user {owner}, you are {os.geteuid()}: run as that user, or remove it")
    with (state / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def step(name: str, doing: str = "starting") -> Iterator[None]:
    """Says every few seconds that something still goes on; nothing about what is quick."""
    began, done = time.monotonic(), threading.Event()

    def report() -> None:
        while not done.wait(REPORT_EVERY_S):
            say(name, f"{doing}, {time.monotonic() - began:.0f} s")

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()


def say(name: str, text: str) -> None:
    print(f"{name:<12} {text}", flush=True)


def with_engine(stack: Stack, command: list[str]) -> int:
    """Exit code of the command, run with an engine and a base image, or with neither where there can be none."""
    ours = False
    try:
        with step("docker"):
            ours = stack.engine.start()
        os.environ[f"{PREFIX}BASE_IMAGE"] = ensure_base_image(stack.base_image)
    except ServiceUnavailable as error:
        say("docker", f"none, so that what needs it is left out: {error}")
    try:
        child = subprocess.Popen(command)
        # Ctrl-C reaches the command as well: it ends in its own order, and we after it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return child.wait()
    finally:
        if ours:
            stack.engine.stop()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "run", "status", "with-engine"))
    parser.add_argument("words", nargs=argparse.REMAINDER, help="of the command for with-engine")
    options = parser.parse_args(argv)
    os.chdir(PROJECT)
    stack = Stack(config.load())
    if options.command == "with-engine":
        return with_engine(stack, options.words)
    if options.command == "status":
        stack.status()
        return 0
    with locked(stack.state):
        if options.command == "down":
            stack.down()
            return 0
        stack.up()
    if options.command == "run":
        return stack.run()
    stack.say_how_to_submit()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except GreenGraderError as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
