"""A changed space: the new study's file, and what the new study begins with."""

import tomllib
from pathlib import Path

import pytest

from lmsearch.config import Value
from lmsearch.errors import ConfigError
from lmsearch.results.reading import read
from lmsearch.search.take_over import best_as_prior
from lmsearch.space import Prior
from lmsearch.store.records import StudyInfo
from lmsearch.store.trials import read_study
from lmsearch.study.editing import extended_text, next_name, with_prior
from lmsearch.study.reading import parse_study
from tests.conftest import Cli
from tests.factories import write_study
from tests.results.made import Made, make_study


@pytest.fixture
def info(prepared_sqlite: Path, tmp_path: Path) -> StudyInfo:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    return make_study(f"sqlite:///{tmp_path / 'store.db'}", [])[1]


def test_a_part_of_a_range_is_changed_in_its_place_and_comments_stay(info: StudyInfo) -> None:
    text = extended_text(info.spec, info.ref.name, ["model.weight_dropout.high=0.9"], Path())
    assert "weight_dropout = { low = 0.0, high = 0.9 } # how much?" in text
    assert text.replace("high = 0.9", "high = 0.7").replace('source = "made"\n', "") == info.spec.text


@pytest.mark.parametrize(
    ("change", "section", "name", "value"),
    [
        ("model.tie_weights=true", "model", "tie_weights", True),
        ("model.num_layers=2", "model", "num_layers", 2),
        ("train.learning_rate={ low = 1e-3, high = 1e-2, log = true }", "train", "learning_rate",
         {"low": 1e-3, "high": 1e-2, "log": True}),
        ("train.optimizer=sgd", "train", "optimizer", "sgd"),
        ("model.tie_weights.choices=[false, true]", "model", "tie_weights", {"choices": [False, True]}),
    ],
)  # fmt: skip
def test_a_value_is_fixed_opened_or_changed(
    info: StudyInfo, change: str, section: str, name: str, value: object
) -> None:
    changes = [change] if "choices" not in change else [change, "model.num_layers=2"]
    assert tomllib.loads(extended_text(info.spec, info.ref.name, changes, Path()))[section][name] == value


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("model.weight_dropuot.high=0.9", "did you mean model.weight_dropout?"),
        ("model.weight_dropout.hihg=0.9", "did you mean high?"),
        ("model.weight_dropout.high", "is not NAME=VALUE"),
        ("model.num_layers.high=4", "model.num_layers is not open in this study"),
        ("model.weight_dropout.high=1.5", "model.weight_dropout must be at least 0 and below 1, got 1.5"),
        ("model.weight_dropout.high=0.7", "the space of made would not change"),
        ("data.corpus=other", "perplexities over another text cannot be compared"),
        ("study.trials=50", "the space of made would not change"),
    ],
)
def test_what_cannot_be_changed_is_refused(info: StudyInfo, change: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        extended_text(info.spec, info.ref.name, [change], Path())
    assert complaint in str(error.value)


def test_a_prior_keeps_a_spread_and_is_read_back(info: StudyInfo) -> None:
    text = with_prior(info.spec.text + '[prior]\n"model.tie_weights" = { at = true, spread = 0.3 }\n', {
        "model.tie_weights": False, "model.weight_dropout": 0.25})  # fmt: skip
    prior = parse_study(text, Path()).prior
    assert prior["model.tie_weights"] == Prior(at=False, spread=0.3)
    assert prior["model.weight_dropout"] == Prior(at=0.25)


def made(dropout: float, perplexity: float) -> Made:
    params = {"model.output_dropout": 0.3, "model.weight_dropout": dropout, "model.tie_weights": True}
    return Made(params=params | {"train.learning_rate": 0.01}, perplexities=[perplexity + 1, perplexity])


def test_the_best_of_a_study_is_the_prior_of_a_space_that_it_is_no_point_of(
    prepared_sqlite: Path, tmp_path: Path
) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    storage, info = make_study(f"sqlite:///{tmp_path / 'store.db'}", [made(0.1, 25.0), made(0.2, 19.0)])
    record = read_study(storage, info)
    assert record.best is not None

    def prior_of(*changes: str) -> dict[str, Value]:
        text = extended_text(info.spec, info.ref.name, changes, Path())
        return best_as_prior(storage, info, parse_study(text, Path()))

    assert prior_of("model.weight_dropout.high=0.9") == {}
    assert prior_of("model.num_layers=2") == record.best.params
    value = record.best.params["model.weight_dropout"]
    assert isinstance(value, float)
    left = prior_of("model.num_layers=2", f"model.weight_dropout.low={value + 0.01}")
    assert left == {path: v for path, v in record.best.params.items() if path != "model.weight_dropout"}


def test_the_next_name_counts_on_and_is_free() -> None:
    assert next_name("a", set()) == "a-2"
    assert next_name("a-2", set()) == "a-3"
    assert next_name("a", {"a-2", "a-3"}) == "a-4"


@pytest.mark.slow
def test_the_new_study_begins_with_the_trials_that_fit(cli: Cli, tmp_path: Path) -> None:
    write_study(tmp_path)
    assert cli("run", "tiny.toml", "--workers", "1", "--trials", "4", "--quiet").returncode == 0
    said = cli("extend", "tiny", "--set", "model.output_dropout.high=0.9", "--trials", "2", "--workers", "1")
    assert said.returncode == 0, said.stderr
    assert "tiny-2.toml is the file of tiny with model.output_dropout.high=0.9" in said.stderr
    assert "from tiny: 4 trials taken over, 0 do not fit this space" in said.stderr
    record = read("tiny-2", f"sqlite:///{tmp_path / 'runs/lmsearch.db'}").record
    assert (record.total, len(record.trials)) == (2, 6)
    assert record.info.spec.open["model.output_dropout"].ends() == (0.0, 0.9)
    assert "--from tiny" in (tmp_path / "runs/tiny-2/best-config.json").read_text()
    refused = cli("extend", "tiny", "--set", "train.epochs=9", "--workers", "1")
    assert (refused.returncode, "train.epochs" in refused.stderr) == (2, True)
    for words in (["--sampler", "foo"], ["--device", "cuda:9"], ["--name", "../zz"], ["--name", "a/b"]):
        refused = cli("extend", "tiny", "--set", "model.output_dropout.high=0.8", *words)
        assert refused.returncode == 2, words
    assert sorted(path.name for path in tmp_path.rglob("*.toml") if "runs" not in path.parts) == [
        "tiny-2.toml",
        "tiny.toml",
    ]  # what was refused left nothing
