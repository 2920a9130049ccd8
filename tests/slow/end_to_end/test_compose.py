"""docker-compose.yml: valid, closed to the outside, and its commands run as they stand there, without containers."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from lmsearch.cli.main import cli
from tests.conftest import create_database
from tests.dashboard.served import free_port
from tests.factories import write_study

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"
SECRETS = ("POSTGRES_PASSWORD", "LMSEARCH_DASHBOARD_TOKEN")
ODD_PASSWORD = "p@ss:w/r d%20#?&'\"\\{0}ü$x"
TOKEN = "correct-horse-battery-staple"
OURS = ("dashboard", "search", "worker", "worker-nvidia")


def compose(**environment: str) -> dict[str, Any]:
    """Read the file as Compose does, with `${…}` replaced from `environment`."""
    document: dict[str, Any] = _replaced(yaml.safe_load(COMPOSE.read_text()), environment)
    return document


def _replaced(part: Any, environment: Mapping[str, str]) -> Any:
    match part:
        case dict():
            return {name: _replaced(value, environment) for name, value in part.items()}
        case list():
            return [_replaced(value, environment) for value in part]
        case str():
            return re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", lambda found: _value(found, environment), part)
    return part


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    name, operator, rest = found.groups()
    if environment.get(name) or operator is None:
        return environment.get(name, "")
    if operator == "?":
        raise KeyError(f"{name}: {rest}")
    return str(rest)


def services(**environment: str) -> dict[str, Any]:
    variables = {"POSTGRES_PASSWORD": ODD_PASSWORD, "LMSEARCH_DASHBOARD_TOKEN": TOKEN} | environment
    found: dict[str, Any] = compose(**variables)["services"]
    return found


def check(path: Path) -> "subprocess.CompletedProcess[str]":
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [str(checker), "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_keeps_to_the_compose_specification(tmp_path: Path) -> None:
    said = check(COMPOSE)
    assert said.returncode == 0, said.stdout + said.stderr
    (tmp_path / "odd.yml").write_text(COMPOSE.read_text().replace("restart: on-failure", "restarts: on-failure"))
    assert check(tmp_path / "odd.yml").returncode == 1


def test_nothing_is_published_beyond_loopback() -> None:
    published = {name: service.get("ports", []) for name, service in services().items()}
    assert {name for name, ports in published.items() if ports} == {"postgres", "dashboard"}
    assert all(str(port).startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert not [name for name, service in services().items() if "network_mode" in service or service.get("privileged")]


@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("given", [{}, {"empty": ""}])
def test_no_secret_has_a_default(missing: str, given: dict[str, str]) -> None:
    others = dict.fromkeys(set(SECRETS) - {missing}, "x" * 20) | ({missing: ""} if given else {})
    with pytest.raises(KeyError, match=missing):
        compose(**others)


def test_a_secret_stands_in_the_environment_alone() -> None:
    for name, service in services().items():
        rest = {key: value for key, value in service.items() if key != "environment"}
        assert ODD_PASSWORD not in str(rest) and TOKEN not in str(rest), name
        holders = {key for key, value in service["environment"].items() if value in (ODD_PASSWORD, TOKEN)}
        assert holders <= {"POSTGRES_PASSWORD", "PGPASSWORD", "LMSEARCH_DASHBOARD_TOKEN"}


def test_each_service_waits_for_the_store_is_restarted_and_has_few_rights() -> None:
    found = services()
    assert set(found) == {"postgres", *OURS}
    assert found["postgres"]["healthcheck"]["test"][1] == "pg_isready"
    for name in OURS:
        service = found[name]
        assert service["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        assert service["restart"] == ("unless-stopped" if name == "dashboard" else "on-failure")
        assert service["cap_drop"] == ["ALL"] and service["init"] is True
    assert found["worker-nvidia"]["profiles"] == ["nvidia"]
    (device,) = found["worker-nvidia"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]


def test_every_volume_is_declared_and_every_folder_is_the_images() -> None:
    document = compose(**dict.fromkeys(SECRETS, "x" * 20))
    folders = re.findall(r"(?<=\s)/[\w/]+", re.search(r"mkdir -p (.*)", (ROOT / "Dockerfile").read_text())[0])  # type: ignore[index]
    used = set()
    for name in OURS:
        for source, target, *_ in (volume.split(":") for volume in document["services"][name].get("volumes", [])):
            if source.startswith("."):
                assert (ROOT / source).is_dir()
            else:
                used.add(source)
                assert target in folders
    assert used | {"store"} == set(document["volumes"])


def test_the_image_is_made_of_files_that_there_are_and_runs_as_a_user_without_rights() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]}
    assert copied == kept and all((ROOT / source).exists() for source in copied)
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert user == "lmsearch" and lines.index(f"USER {user}") > max(
        number for number, line in enumerate(lines) if line.startswith(("RUN", "COPY"))
    )


def documented_commands() -> list[tuple[str, list[str]]]:
    """Give each command of ours in docs/deploy.md, with the service that it is run in."""
    text = (ROOT / "docs/deploy.md").read_text()
    found = re.findall(r"docker compose (?:run|exec)(?: -\S+)* (\S+) (lmsearch [^`\n]+)", text)
    return [(service, shlex.split(command)) for service, command in found]


def test_the_commands_of_the_documentation_are_commands_of_ours_and_of_the_files_services() -> None:
    assert len(documented_commands()) >= 4
    for service, words in documented_commands():
        assert service in services()
        cli.commands[words[1]].make_context(words[1], list(words[2:]))  # refuses what it does not know
    named = re.findall(r"--scale (\w+)=|compose logs (\w+)|cp (\w+):", (ROOT / "docs/deploy.md").read_text())
    assert named and {name for names in named for name in names if name} <= set(services())


# The commands of the services, with the environment of the services.


@pytest.fixture
def own_postgres(postgres: str) -> Iterator[str]:
    """Set up what the image of PostgreSQL sets up: a database, and its owner, who must show the password."""
    with psycopg.connect(postgres.format("postgres"), autocommit=True) as connection:
        quoted = psycopg.sql.Literal(ODD_PASSWORD)
        connection.execute(psycopg.sql.SQL("CREATE ROLE lmsearch LOGIN PASSWORD {}").format(quoted))
        create_database(postgres, "lmsearch", "template1")
        connection.execute("ALTER DATABASE lmsearch OWNER TO lmsearch")
        (path,) = connection.execute("SHOW hba_file").fetchone() or ("",)
        rules = Path(path).read_text(encoding="utf-8")
        Path(path).write_text(f"local all lmsearch scram-sha-256\n{rules}", encoding="utf-8")
        connection.execute("SELECT pg_reload_conf()")
        yield postgres.partition("host=")[2]
        Path(path).write_text(rules, encoding="utf-8")
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("DROP DATABASE lmsearch WITH (FORCE)")
        connection.execute("DROP ROLE lmsearch")


class Host:
    """A Docker host without Docker: service by service, the command and the environment that the file gives."""

    def __init__(self, folder: Path, postgres_folder: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._services = services(LMSEARCH_STUDY="tiny")
        self._replaced = {
            "@postgres/lmsearch": f"@/lmsearch?host={postgres_folder}",
            "8080": str(self.port),
            "/studies/": f"{folder}/studies/",
            "/checkpoints": f"{folder}/checkpoints",
            "/corpora": f"{folder}/corpora",
        }

    def _here(self, text: str) -> str:
        for there, here in self._replaced.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        variables = {name: self._here(str(value)) for name, value in self._services[service]["environment"].items()}
        return {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables

    def start(
        self, service: str, log: Path, words: Sequence[str] | None = None, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """Start what `docker compose up SERVICE` starts, or what `docker compose run SERVICE WORDS` does."""
        words = [self._here(word) for word in words or self._services[service]["command"]]
        search = self._folder / "search"
        search.mkdir(exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            return subprocess.Popen(
                words, cwd=search, env=self.environment(service) | environment, stdout=output, stderr=subprocess.STDOUT
            )

    def run_until_done(self, service: str, log: Path) -> None:
        """Start it again whenever it fails, as `restart: on-failure` does."""
        end = time.monotonic() + 120
        while self.start(service, log).wait(timeout=120) != 0:
            assert time.monotonic() < end, log.read_text(encoding="utf-8")
            time.sleep(0.5)

    def is_healthy(self, service: str, **environment: str) -> bool:
        kind, *words = self._services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        checked = subprocess.run(
            [self._here(word) for word in words],
            env=self.environment(service) | environment,
            capture_output=True,
            timeout=30,
            check=False,
        )
        return checked.returncode == 0


def test_the_services_search_together_and_the_dashboard_is_healthy(own_postgres: str, tmp_path: Path) -> None:
    host = Host(tmp_path, own_postgres)
    (tmp_path / "studies").mkdir()
    study = write_study(tmp_path / "studies")
    study.write_text(study.read_text().replace("trials = 3", "trials = 8").replace("epochs = 3", "epochs = 30"))
    log = tmp_path / "log"

    refused = host.start("search", tmp_path / "refused", PGPASSWORD="wrong")
    assert refused.wait(timeout=60) == 2 and "password authentication failed" in (tmp_path / "refused").read_text()

    search = host.start("search", log)
    logs = [tmp_path / "worker-1.log", tmp_path / "worker-2.log"]
    with ThreadPoolExecutor() as scaled:
        list(scaled.map(lambda log: host.run_until_done("worker", log), logs))
    assert search.wait(timeout=120) == 0, log.read_text()
    assert "tiny: 8 of 8 trials" in log.read_text()
    assert all("joined tiny on cpu" in log.read_text() for log in logs)
    assert (tmp_path / "search/runs/tiny/best-config.json").exists()
    assert (tmp_path / "search/runs/tiny/best-model").exists()
    assert list((tmp_path / "corpora").iterdir()) and list((tmp_path / "checkpoints").iterdir())

    (more,) = (words for _, words in documented_commands() if "--more" in words)
    added = [word.replace("my-study", "tiny").replace("20", "2") for word in more]
    assert host.start("search", log, added).wait(timeout=120) == 0, log.read_text()
    assert "tiny: 10 of 10 trials" in log.read_text()

    dashboard = host.start("dashboard", log)
    try:
        end = time.monotonic() + 60
        while not host.is_healthy("dashboard"):
            assert time.monotonic() < end and dashboard.poll() is None, log.read_text()
            time.sleep(0.5)
        assert not host.is_healthy("dashboard", LMSEARCH_DASHBOARD_TOKEN="another-token-than-that")
    finally:
        dashboard.terminate()
        dashboard.wait(timeout=30)
    assert not host.is_healthy("dashboard")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert ODD_PASSWORD.encode() not in path.read_bytes() and TOKEN.encode() not in path.read_bytes(), path
