"""The commands as a person types them, in an empty folder, with the real trainer."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import Cli
from tests.factories import TINY_STUDY, write_corpus, write_study


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Run one small search with the command; give the folder it was run in."""
    folder = tmp_path_factory.mktemp("searched")
    write_study(folder)
    said = subprocess.run(
        [sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "2", "--sampler", "tpe"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    (folder / "said").write_text(said.stdout)
    assert (said.returncode, said.stderr) == (0, "")
    return folder


def best_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "runs/tiny/best-config.json").read_text())
    return config


def test_a_search_tells_its_plan_what_it_found_and_what_comes_next(searched: Path) -> None:
    said = (searched / "said").read_text()
    for expected in (
        r"study    tiny in sqlite:///runs/lmsearch.db",
        r"corpus   .*/corpus: 660 / 220 / 220 tokens, 14 words",
        r"search   model.tie_weights: one of true, false",
        r"by       tpe, pruned by none, on 2 workers \(cpu\)",
        r"trial \d \(tpe\): complete, perplexity [\d.]+ after 3 epochs",
        r"tiny: 3 of 3 trials, 3 complete, best [\d.]+ \(trial \d\)",
        r"runs/tiny/best-config.json",
        r"report\n  lmsearch report tiny --open\nnext: is the winner real\?\n  lmsearch confirm tiny --top 3 --seeds 3\n$",
    ):
        assert re.search(expected, said), expected


def test_best_config_keeps_to_its_schema_and_names_its_corpus_from_its_own_folder(searched: Path) -> None:
    config = best_config(searched)
    schema = json.loads((files("lmsearch") / "best-config.schema.json").read_text())
    jsonschema.validate(config, schema)
    assert config["data"]["corpus"] == "../../corpus"
    assert config["result"]["perplexity"] == min(config["result"]["curve"])
    searched_by = "lmsearch run tiny.toml --sampler tpe --workers 2"
    assert config["provenance"]["command"] == config["provenance"]["written_by"] == searched_by
    assert config["provenance"]["commands"] == [searched_by]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"result": {}}, schema)


@pytest.mark.parametrize("elsewhere", [".", "another/folder"])
def test_the_best_config_trains_again_to_the_same_perplexity_bit_for_bit(
    searched: Path, cli: Cli, elsewhere: str, tmp_path: Path
) -> None:
    folder = tmp_path / elsewhere
    folder.mkdir(parents=True, exist_ok=True)
    said = cli("train", str(searched / "runs/tiny/best-config.json"), "--json", cwd=folder)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["perplexity"] == best_config(searched)["result"]["perplexity"]
    assert found["epoch"] == best_config(searched)["result"]["epoch"]
    trained = cli("train", str(searched / "runs/tiny/best-config.json"), cwd=folder)
    assert "the same, bit for bit" in trained.stdout
    assert (folder / found["model"] / "model.safetensors").exists()


def test_the_best_model_is_that_of_the_best_trial(searched: Path, cli: Cli) -> None:
    folder = searched / "runs/tiny/best-model"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["perplexity"] == best_config(searched)["result"]["perplexity"]
    config = json.loads((folder / "config.json").read_text())
    assert (folder / config["data"]["corpus"]).resolve() == (searched / "corpus").resolve()
    evaluated = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, math; from pathlib import Path\n"
            "from lmsearch.lm.use.model_folder import load_model; from lmsearch.lm.evaluate import evaluate\n"
            "from lmsearch.lm.batches import as_indices; from lmsearch.text.corpus import open_corpus, cache_folder\n"
            "import torch; trained = load_model(Path(sys.argv[1]))\n"
            "corpus = open_corpus(trained.config.data, cache_folder())\n"
            "tokens = as_indices(corpus.valid.tokens); torch.set_num_threads(1)\n"
            "print(repr(math.exp(evaluate(trained.model, tokens, 4, 8, 200).loss)))",
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(evaluated.stdout) == metrics["perplexity"]


def test_the_study_file_as_run_is_a_study_file(searched: Path, cli: Cli) -> None:
    said = cli("run", str(searched / "runs/tiny/study.toml"), "--name", "tiny", "--quiet", cwd=searched)
    assert said.returncode == 0, said.stderr
    assert "tiny: 3 of 3 trials" in said.stdout


def test_trials_csv_has_a_row_for_each_trial(searched: Path) -> None:
    lines = (searched / "runs/tiny/trials.csv").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(
        "trial,outcome,by,perplexity,best_epoch,epochs,parameters,started,ended,model.tie_weights"
    )


def test_a_finished_study_run_again_trains_nothing_and_says_the_same(searched: Path, cli: Cli) -> None:
    began = time.monotonic()
    said = cli("run", "tiny.toml", "--workers", "2", "--sampler", "tpe", cwd=searched)
    assert said.returncode == 0 and time.monotonic() - began < 30
    assert said.stdout.splitlines()[-10:] == (searched / "said").read_text().splitlines()[-10:]
    assert len(list((searched / "runs/tiny/logs").iterdir())) == 2


def test_best_status_and_studies_tell_the_same_as_text_and_as_json(searched: Path, cli: Cli) -> None:
    perplexity = best_config(searched)["result"]["perplexity"]
    status = json.loads(cli("status", "tiny", "--json", cwd=searched).stdout)
    assert (status["total"], status["done"], status["counts"]["complete"]) == (3, 3, 3)
    assert status["best"]["perplexity"] == perplexity and status["at_work"] == []
    assert json.loads(cli("best", "tiny", "--json", cwd=searched).stdout)["result"]["perplexity"] == perplexity
    assert [s["study"] for s in json.loads(cli("studies", "--json", cwd=searched).stdout)] == ["tiny"]
    for words in (["status", "tiny"], ["status"], ["trials"], ["best", "tiny"], ["studies"]):
        said = cli(*words, cwd=searched)
        assert said.returncode == 0 and f"{perplexity:.2f}" in said.stdout
    assert status["state"] == "finished" and "finished" in cli("status", cwd=searched).stdout


@pytest.mark.slow
def test_a_study_is_resumed_by_its_name_alone_and_what_is_queued_can_be_withdrawn(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path / "elsewhere")
    assert cli("run", "elsewhere/tiny.toml", "-n", "1", "-j", "1", "-q", "--sampler", "random").returncode == 0
    assert cli("enqueue", "tiny", "model.output_dropout=0.4").returncode == 0
    said = cli("status")
    assert said.stdout.splitlines()[1:] == ["nobody is working, 1 queued", "resume with: lmsearch run tiny"]
    assert "resume with: lmsearch run tiny" in cli("stop", "tiny").stdout
    stopped = json.loads(cli("status", "--json").stdout)
    assert (stopped["state"], stopped["not_started"]) == ("stopped", 1) and stopped["stopped_at"] > 1e9
    assert re.search(
        r"^stopped by `lmsearch stop` at \d\d:\d\d, 1 queued, nobody is working$", cli("status").stdout, re.M
    )
    resumed = cli("run", "tiny", "-j", "1")
    assert resumed.returncode == 0 and "tiny: 2 of 2 trials, 2 complete" in resumed.stdout, resumed.stderr
    assert cli("enqueue", "tiny", "model.output_dropout=0.3").returncode == 0
    assert cli("enqueue", "tiny", "--withdraw").stdout == "1 enqueued trial of tiny withdrawn\n"
    assert cli("status").stdout.splitlines()[1:] == ["finished"]
    refused = cli("enqueue", "tiny")
    assert refused.returncode == 2 and "to add a trial of the sampler: lmsearch run tiny --more 1" in refused.stderr
    old = cli("run", "tiny", "--hours", "3")
    assert (old.returncode, old.stderr) == (2, "lmsearch: --hours is now: --time-limit 3h\n")
    assert cli("run", "tinny").stderr.startswith("lmsearch: there is no study file 'tinny'")


def test_a_shell_completes_studies_files_samplers_and_pruners(searched: Path) -> None:
    def completed(*words: str) -> list[str]:
        said = subprocess.run(
            [Path(sys.executable).with_name("lmsearch")],
            cwd=searched,
            env=dict(os.environ) | {
                "_LMSEARCH_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["lmsearch", *words]),
                "COMP_CWORD": str(len(words)),
            },
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return said.stdout.split()

    assert completed("status", "t") == ["plain,tiny"]
    assert completed("run", "asha") == ["plain,asha-paper"]
    assert completed("run", "./ti") == ["file,./ti"]
    assert completed("run", "--sampler", "g") == ["plain,grid", "plain,gp"]
    assert completed("run", "--pruner", "th") == ["plain,thaw"]


def test_plain_optuna_reads_the_study(searched: Path) -> None:
    code = (
        "import optuna; s = optuna.load_study(study_name='tiny', storage='sqlite:///runs/lmsearch.db');"
        "print(s.best_value, s.metric_names, len(s.trials), s.best_trial.user_attrs['origin'])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=searched, capture_output=True, text=True, check=True)
    value, names, rest = said.stdout.strip().split(" ", 1)[0], "['validation perplexity']", said.stdout
    assert float(value) == best_config(searched)["result"]["perplexity"]
    assert names in rest and rest.strip().endswith("3 search")
    command = [str(Path(sys.executable).with_name("optuna")), "trials", "--study-name", "tiny"]
    listed = subprocess.run(
        [*command, "--storage", "sqlite:///runs/lmsearch.db", "-f", "json"],
        cwd=searched,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    assert len(json.loads(listed.stdout)) == 3


def test_the_weights_are_kept_as_they_were_when_the_results_are_written_again(searched: Path, cli: Cli) -> None:
    before = (searched / "runs/tiny/best-config.json").read_text()
    (searched / "runs/tiny/best-config.json").unlink()
    assert cli("best", "tiny", cwd=searched).returncode == 0
    after = json.loads((searched / "runs/tiny/best-config.json").read_text())
    assert after | {"provenance": 0} == json.loads(before) | {"provenance": 0}
    (searched / "runs/tiny/best-config.json").write_text(before)


@pytest.mark.slow
def test_one_worker_and_one_seed_give_the_same_trials_and_losses_twice(cli: Cli, tmp_path: Path) -> None:
    tables = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_study(tmp_path / name)
        text = TINY_STUDY.replace('"none"', '"median"').replace("trials = 3", "trials = 10")
        (tmp_path / name / "tiny.toml").write_text(text)
        said = cli("run", "tiny.toml", "--workers", "1", "--sampler", "tpe", cwd=tmp_path / name)
        assert said.returncode == 0, said.stderr
        with sqlite3.connect(tmp_path / name / "runs/lmsearch.db") as database:
            query = "SELECT trial_id, step, intermediate_value FROM trial_intermediate_values ORDER BY 1, 2"
            values = database.execute(query).fetchall()
            parameters = database.execute("SELECT trial_id, param_name, param_value FROM trial_params ORDER BY 1, 2")
            tables.append((values, parameters.fetchall()))
    assert tables[0] == tables[1]
    assert len(tables[0][0]) >= 20 and len({value for _, _, value in tables[0][0]}) >= 20


@pytest.mark.slow
def test_ctrl_c_saves_prints_the_command_that_goes_on_and_the_curve_is_the_uninterrupted_one(
    cli: Cli, tmp_path: Path
) -> None:
    text = TINY_STUDY.replace("trials = 3", "trials = 2").replace("epochs = 3", "epochs = 60")
    curves = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        write_study(tmp_path / name, text)
        command = [sys.executable, "-m", "lmsearch.cli.main", "run", "tiny.toml", "--workers", "2"]
        search = subprocess.Popen(command, cwd=tmp_path / name, stdout=subprocess.PIPE, text=True)
        if name == "stopped":
            _wait_for_epochs_of_two_trials(tmp_path / name / "runs/lmsearch.db")
            search.send_signal(signal.SIGINT)
            said, _ = search.communicate(timeout=60)
            assert search.returncode == 130
            resuming = re.search(r"interrupted; everything is saved; resume with: lmsearch (.*)", said)
            assert resuming and resuming[1] == "run tiny.toml --workers 2"
            assert "2 waiting" in cli("status", "tiny", cwd=tmp_path / name).stdout
            assert cli(*resuming[1].split(), cwd=tmp_path / name).returncode == 0
        else:
            search.communicate(timeout=200)
        with sqlite3.connect(tmp_path / name / "runs/lmsearch.db") as database:
            query = "SELECT trial_number, epoch, train_loss, valid_loss FROM lmsearch_epoch ORDER BY 1, 2"
            by_trial: dict[int, list[Any]] = {}
            for number, *figures in database.execute(query):
                by_trial.setdefault(number, []).append(figures)
        curves.append(sorted(by_trial.values()))  # which of two workers has the first trial is chance
    assert [len(curve) for curve in curves[0]] == [60, 60]
    assert curves[0] == curves[1]


def _wait_for_epochs_of_two_trials(path: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.05)
        if path.exists():
            with sqlite3.connect(path) as database:
                try:
                    of_trials = database.execute("SELECT count(*) FROM lmsearch_epoch GROUP BY trial_number").fetchall()
                    if len(of_trials) == 2 and min(of_trials) >= (2,):
                        return
                except sqlite3.OperationalError:
                    continue
    raise AssertionError("no epoch was reported")


@pytest.mark.slow
def test_enqueue_says_how_to_run_what_it_added_and_a_worker_runs_it(searched: Path, cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0
    said = cli("enqueue", "tiny", "model.output_dropout=0.4", "model.tie_weights=false")
    assert "tiny has a budget of 4 trials now" in said.stdout
    assert "no worker is running; start one with: lmsearch worker tiny" in said.stdout
    refused = cli("enqueue", "tiny", "model.output_dropout=0.9")
    assert refused.returncode == 2 and "out of its range 0 to 0.5" in refused.stderr
    assert cli("worker", "tiny", "--device", "cpu").returncode == 0
    status = json.loads(cli("status", "tiny", "--json").stdout)
    assert (status["done"], status["total"]) == (4, 4)
    with sqlite3.connect(tmp_path / "runs/lmsearch.db") as database:
        (value,) = database.execute(
            "SELECT param_value FROM trial_params JOIN trials USING (trial_id) WHERE number = 3 AND param_name = "
            "'model.output_dropout'"
        ).fetchone()
    assert value == 0.4


def test_a_diverging_trial_is_reported_as_pruned_at_the_vocabularys_size(cli: Cli, tmp_path: Path) -> None:
    text = TINY_STUDY.replace("low = 1e-3, high = 1e-1, log = true, grid = [0.01]", "low = 900.0, high = 1e3")
    write_study(tmp_path, text.replace("bptt = 8", 'bptt = 8\noptimizer = "sgd"\nclip_norm = 0'))
    said = cli("run", "tiny.toml", "--workers", "1")
    assert said.returncode == 1
    assert "all 3 trials of tiny diverged, so no model was kept. The loss was no longer finite: each " in said.stderr
    status = json.loads(cli("status", "tiny", "--json").stdout)
    assert (status["counts"]["diverged"], status["counts"]["pruned"], status["done"]) == (3, 0, 3)
    with sqlite3.connect(tmp_path / "runs/lmsearch.db") as database:
        values = {value for (value,) in database.execute("SELECT value FROM trial_values")}
        states = {state for (state,) in database.execute("SELECT state FROM trials")}
    assert (values, states) == ({14.0}, {"PRUNED"})


BAD = {
    "a misspelt key": (["run", "tiny.toml"], ("epochs", "epohcs"), "unknown key train.epohcs; did you mean train.epochs?"),
    "a wrong type": (["run", "tiny.toml"], ("bptt = 8", 'bptt = "8"'), "train.bptt must be a whole number, got '8'"),
    "an empty range": (["run", "tiny.toml"], ("high = 0.5", "high = 0.0"), "a range needs low < high"),
    "a short split": (["run", "tiny.toml"], ("\nbatch_size = 4", "\nbatch_size = 999"), "too few for train.batch_size = 999"),
    "no corpus": (["run", "tiny.toml"], ('"corpus"', '"corpsu"'), "there is no corpus 'corpsu'"),
    "an open value that may not be": (["run", "tiny.toml"], ("epochs = 3", "epochs = { low = 1, high = 2 }"), "train.epochs may not be open"),
    "no sampler": (["run", "tiny.toml", "--sampler", "tpee"], None, "no sampler is called 'tpee'; did you mean tpe?"),
    "no pruner": (["run", "tiny.toml", "--pruner", "mediann"], None, "no pruner is called 'mediann'; did you mean median?"),
    "no device": (["run", "tiny.toml", "--device", "gpu"], None, "no device is called 'gpu'"),
    "a GPU that is not there": (["run", "tiny.toml", "--device", "cuda:7"], None, "cuda:7"),
    "a folder": (["run", "corpus"], None, "corpus is a folder; name a study file in it"),
    "no file": (["run", "defualt"], None, "there is no study file 'defualt'; did you mean default?"),
    "a storage with a typo": (["run", "tiny.toml", "--storage", "sqlit:///x.db"], None, "the storage sqlit:// is not supported"),
    "no time at all": (["run", "tiny.toml", "--stall", "0s"], None, "'0s' is not above zero; write 10m or 90s"),
    "both budgets": (["run", "tiny.toml", "--trials", "3", "--more", "2"], None, "give one of the two"),
    "a hidden name": (["run", "tiny.toml", "--name", "../x"], None, "a study cannot be called '../x'"),
    "an unknown command": (["rnu"], None, "there is no command 'rnu'; did you mean run?"),
    "no store": (["status", "tiny"], None, "there is no store"),
    "not UTF-8": (["run", "binary.toml"], None, "binary.toml is not UTF-8: byte 0 cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "change", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence_exit_code_2_and_leaves_nothing_behind(
    cli: Cli, tmp_path: Path, words: list[str], change: tuple[str, str] | None, message: str
) -> None:
    text = TINY_STUDY
    if change is not None:
        assert change[0] in text
        text = text.replace(*change)
    write_study(tmp_path, text)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    said = cli(*words)
    assert said.returncode == 2, said.stdout + said.stderr
    assert message in said.stderr and "Traceback" not in said.stderr and said.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [("run",), ("run", "--trials", "3"), ("plan",)])
def test_a_file_with_nothing_open_is_for_train(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "closed.toml").write_text('format = 1\n[data]\ncorpus = "corpus"\n')
    said = cli(words[0], "closed.toml", *words[1:])
    assert said.returncode == 2 and "lmsearch train closed.toml" in said.stderr, said.stderr
    assert not (tmp_path / "runs").exists()


def test_an_unknown_study_is_answered_with_the_nearest(searched: Path, cli: Cli) -> None:
    for words in (["status", "tinny"], ["best", "tinny"], ["worker", "tinny"], ["enqueue", "tinny", "a=1"]):
        said = cli(*words, cwd=searched)
        assert said.returncode == 2 and "there is no study 'tinny' in the store; did you mean tiny?" in said.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code"), [(["status", "tinny"], 2), (["run", "tiny.toml"], 0), (["best", "tiny"], 75)]
)
def test_a_full_disk_behind_what_is_said_costs_the_words_and_not_the_search(
    searched: Path, words: list[str], code: int
) -> None:
    """The exit code tells the truth: of a search, how it ended; of a command that only tells, that it could not."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "lmsearch.cli.main", *words]
        said = subprocess.run(command, cwd=searched, stdout=full, stderr=full, check=False)
    assert said.returncode == code


def test_help_is_there_for_every_command_with_an_example_and_comes_at_once(cli: Cli) -> None:
    from lmsearch.cli.main import cli as group

    code = "import sys; from lmsearch.cli.main import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not {"'torch'", "'optuna'", "'sqlalchemy'", "'numpy'", "'rich'"} & set(re.findall(r"'[\w.]+'", said.stdout))
    for name, command in group.commands.items():
        assert name in said.stdout
        assert "Example" in (command.help or ""), name
        assert f"lmsearch {name}" in (command.help or ""), name


def test_run_as_json_prints_one_document(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    said = cli("run", "tiny.toml", "--workers", "1", "--json")
    document = json.loads(said.stdout)
    assert (document["done"], document["files"]["best_config"]) == (3, "runs/tiny/best-config.json")
    quiet = cli("run", "tiny.toml", "--quiet")
    assert quiet.stdout.startswith("\ntiny: 3 of 3 trials")


def test_an_objective_for_optuna_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    import lmsearch

    path = write_study(tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(lmsearch.objective(path, device="cpu"), n_trials=2)
    assert set(study.best_params) == {"model.output_dropout", "model.tie_weights", "train.learning_rate"}
    assert study.best_value == min(study.best_trial.intermediate_values.values()) < 14


def test_the_dashboard_answers_on_loopback_only(searched: Path) -> None:
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lmsearch.cli.main", "dashboard", "--port", str(port)]
    server = subprocess.Popen(command, cwd=searched, stdout=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    studies = json.loads(answer.read())["study_summaries"]
                    break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.2)
        assert [study["study_name"] for study in studies] == ["tiny"]
        listening = [
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:]
            if " 0A " in line
        ]
        assert [address.split(":")[0] for address in listening if int(address.split(":")[1], 16) == port] == [
            "0100007F"
        ]
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.mark.slow
def test_a_corpus_elsewhere_is_joined_with_its_path(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--quiet").returncode == 0
    cli("enqueue", "tiny", "model.output_dropout=0.1")
    (tmp_path / "corpus").rename(tmp_path / "moved")
    refused = cli("worker", "tiny")
    assert refused.returncode == 2 and "there is no corpus" in refused.stderr
    assert cli("worker", "tiny", "--corpus", "moved").returncode == 0
    write_corpus(tmp_path / "other", seed=4)
    cli("enqueue", "tiny", "model.output_dropout=0.1")
    other = cli("worker", "tiny", "--corpus", "other")
    assert other.returncode == 2 and other.stderr.count("fingerprint") == 2


@pytest.mark.slow
def test_the_embedded_corpus_too_trains_again_bit_for_bit(cli: Cli, tmp_path: Path) -> None:
    text = TINY_STUDY.replace('corpus = "corpus"', 'corpus = "python-docs"\nmin_count = 20')
    (tmp_path / "docs.toml").write_text(
        text.replace("trials = 3", "trials = 1").replace("\nbatch_size = 4", "\nbatch_size = 40")
    )
    assert cli("run", "docs.toml", "--workers", "1", "--quiet").returncode == 0
    config = json.loads((tmp_path / "runs/docs/best-config.json").read_text())
    assert config["data"]["corpus"] == "python-docs"
    found = json.loads(cli("train", "runs/docs/best-config.json", "--json").stdout)
    assert found["perplexity"] == config["result"]["perplexity"]


@pytest.mark.slow
def test_a_search_on_postgresql_writes_its_password_nowhere(cli: Cli, tmp_path: Path, postgres_url: str) -> None:
    write_study(tmp_path, TINY_STUDY.replace("epochs = 3", "epochs = 60"))  # longer than the time limit
    url = postgres_url.replace("postgres@", "postgres:hunter2@")
    stopped = cli("run", "tiny.toml", "--workers", "2", "--time-limit", "0.4s", "--storage", url)
    resumed = cli("run", "tiny.toml", "--workers", "2", LMSEARCH_STORAGE=url)
    refused = cli("status", "tinny", LMSEARCH_STORAGE=url)
    broken = cli("status", "tiny", LMSEARCH_STORAGE=url.replace("postgresql://", "postgresql//"))
    assert [said.returncode for said in (stopped, resumed, refused, broken)] == [0, 0, 2, 2]
    assert "the time limit is reached; everything is saved; resume with: lmsearch run tiny.toml" in stopped.stdout
    assert "with LMSEARCH_STORAGE set" in stopped.stdout
    assert "tiny: 3 of 3 trials, 3 complete" in resumed.stdout
    for said in (stopped, resumed, refused, broken):
        assert "hunter2" not in said.stdout + said.stderr
    files_written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files_written) > 8
    assert not [path for path in files_written if b"hunter2" in path.read_bytes()]
