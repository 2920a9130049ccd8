"""Study files: read strictly, closed exactly."""

import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from lmsearch.config import Value
from lmsearch.errors import ConfigError, LmsearchError
from lmsearch.lm.model import LanguageModel
from lmsearch.search.strategies import PRUNERS, SAMPLERS
from lmsearch.space import Choice, OpenValue
from lmsearch.study.differences import differences
from lmsearch.study.options import PRUNER_OPTIONS, SAMPLER_OPTIONS
from lmsearch.study.reading import load_config, load_study, parse_study, parse_value
from lmsearch.study.shipped import shipped_studies
from lmsearch.version import __version__
from tests.factories import TINY_STUDY, make_spec, write_study


def changed(old: str, new: str) -> str:
    assert old in TINY_STUDY
    return TINY_STUDY.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed("output_dropout", "output_dropuot"), "unknown key model.output_dropuot; did you mean model.output_dropout?"),
        (changed("[study]", "[stuyd]"), "unknown key stuyd; did you mean study?"),
        (changed("trials = 3", "trails = 3"), "unknown key study.trails; did you mean trials?"),
        (changed("trials = 3", "trials = 0"), "study.trials must be at least 1, got 0"),
        (changed("trials = 3", 'trials = "3"'), "study.trials must be of type int, got '3'"),
        (changed('"random"', '"tpee"'), "no sampler is called 'tpee'; did you mean tpe?"),
        (changed('"none"', '"medain"'), "no pruner is called 'medain'; did you mean median?"),
        (changed("low = 0.0, high = 0.5", "low = 0.5, high = 0.0"), "model.output_dropout: a range needs low < high"),
        (changed("high = 0.5", "high = 1.0"), "model.output_dropout must be at least 0 and below 1, got 1.0"),
        (changed("high = 0.5", "hihg = 0.5"), "unknown key hihg in model.output_dropout; did you mean high?"),
        (changed("epochs = 3", "epochs = { low = 1, high = 9 }"), "train.epochs may not be open: perplexities"),
        (changed('corpus = "corpus"', "corpus = { choices = ['a', 'b'] }"), "data.corpus may not be open"),
        (changed("hidden_size = 6", "hidden_size = { low = 0, high = 9 }"), "model.hidden_size must be at least 1"),
        (changed("tie_weights = { choices = [true, false] }", "tie_weights = { low = 0, high = 1 }"), "choices"),
        (changed("format = 1", "format = 2"), "is of format 2, and lmsearch"),
        (changed('corpus = "corpus"', ""), "data.corpus is missing"),
        (changed("format = 1", "format = "), "not valid TOML"),
        (TINY_STUDY + "[sampler]\nn_startup_trials = 3\n", "unknown key sampler.n_startup_trials for the sampler 'random'"),
        (changed('"none"', '"asha"') + "[pruner]\nmin_resource = 0\n", "pruner.min_resource must be at least 1 and at most 1,000,000,000, got 0"),
        (changed('"none"', '"asha"') + "[pruner]\nreduction_factor = 1\n", "pruner.reduction_factor must be at least 2"),
        (changed("trials = 3", "trials = 3\nhours = inf"), "study.hours must be at most 1,000,000, got inf"),
        (changed('corpus = "corpus"', 'corpus = "a\\u0000b"'), "is not a path"),
        (changed("epochs = 3", "epochs = " + "9" * 5000), "not valid TOML"),
        (changed("epochs = 3", "epochs = " + "[" * 3000), "not valid TOML"),
        (changed("hidden_size = 6", "parameters = '1M'\nhidden_size = { same_as = 'model.num_layers' }"), "give one of the two"),
        (TINY_STUDY + '[[manual]]\n"model.bptt" = 3\n', "[[manual]] table 1: unknown name model.bptt"),
        (TINY_STUDY + '[[manual]]\n"train.bptt" = 3\n', "train.bptt is fixed at 8 in this study"),
        (TINY_STUDY + '[[manual]]\n"model.output_dropout" = 0.9\n', "model.output_dropout = 0.9 is out of its range 0 to 0.5"),
        (changed("hidden_size = 6", 'parameters = "24M"\nhidden_size = 6'), "give one of the two"),
        (TINY_STUDY + "[prior]\n'model.output_dropout' = { spread = 0.1 }\n", "model.output_dropout needs at"),
        (TINY_STUDY + "[prior]\n'model.output_dropout' = { at = 0.1, width = 1 }\n", "unknown key width of model.out"),
        (TINY_STUDY + "[prior]\n'model.output_dropout' = { at = 7 }\n", "[prior]: model.output_dropout = 7.0 is out of"),
        (TINY_STUDY + "[prior]\n'model.output_dropout' = { at = 0.1, spread = 0 }\n", "a spread must be above 0"),
        (TINY_STUDY + "[prior]\n'model.output_dropout' = { at = 0.1, spread = 'wide' }\n", "must be of type float"),
        (TINY_STUDY + "[prior]\nmodel.num_layers = 2\n", "[prior]: model.num_layers is "),
        (TINY_STUDY + "[prior]\nmodel = 2\n", "[prior]: unknown name model"),
        (changed("epochs = 3\n", "epochs = 3\nweight_decay = { same_as = 'train.lr' }\n"), "same_as names one other"),
        (changed("epochs = 3\n", "epochs = 3\nweight_decay = { same_as = ['train.lr'] }\n"), "same_as names one other"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_sentence_with_the_way_out(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LmsearchError) as error:
        make_spec(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value).split(": ")[0]


def test_a_file_that_is_a_folder_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load_study(tmp_path)
    (tmp_path / "bad.toml").write_bytes(b"format = 1\n# \xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8: byte 13"):
        load_study(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="there is no file"):
        load_study(tmp_path / "none.toml")


def test_options_belong_to_the_strategy_that_the_file_names(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, changed('"random"', '"tpe"') + "[sampler]\nn_startup_trials = 3\n")
    assert spec.sampler_options == {"n_startup_trials": 3}


def test_samplers_and_pruners_are_exactly_those_that_a_file_may_name() -> None:
    assert set(SAMPLERS) == set(SAMPLER_OPTIONS)
    assert set(PRUNERS) == set(PRUNER_OPTIONS)


def test_closing_gives_every_value_its_place_and_refuses_a_missing_one(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    point: dict[str, Value] = {
        "model.output_dropout": 0.25,
        "model.tie_weights": False,
        "train.learning_rate": 0.01,
    }
    config = spec.close(point, 100)
    assert (config.model.output_dropout, config.model.tie_weights) == (0.25, False)
    assert config.data.corpus == str(tmp_path / "corpus")
    with pytest.raises(ConfigError, match="train.learning_rate is open in this study and was given no value"):
        spec.close({p: v for p, v in point.items() if p != "train.learning_rate"}, 100)


def test_a_value_may_follow_another(tmp_path: Path) -> None:
    text = changed("hidden_size = 6\n", "hidden_size = 6\ninput_dropout = { same_as = 'model.output_dropout' }\n")
    spec = make_spec(tmp_path, text)
    for point in spec.ends():
        config = spec.close(point, 10)
        assert config.model.input_dropout == config.model.output_dropout


def test_the_grid_is_the_product_in_the_files_order(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    assert [tuple(point.values()) for point in spec.grid_points()] == list(
        # in the order of the settings: tie_weights, output_dropout, learning_rate
        itertools.product((True, False), (0.1, 0.2), (0.01,))
    )
    with pytest.raises(ConfigError, match="train.learning_rate is open without a grid"):
        make_spec(tmp_path, changed(", grid = [0.01]", "")).grid_points()


@pytest.mark.parametrize("vocabulary", [1_000, 10_000, 33_278])
@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("embedding", ["", "embedding_size = 100\n"])
def test_a_budget_of_parameters_is_met_within_one_percent(
    tmp_path: Path, vocabulary: int, tied: str, layers: int, embedding: str
) -> None:
    model = f'parameters = "24M"\n{embedding}num_layers = {layers}\ntie_weights = {tied}\n'
    text = f'[data]\ncorpus = "python-docs"\n[model]\n{model}'
    spec = parse_study(text, tmp_path)
    if embedding and tied == "true" and layers == 1:
        with pytest.raises(ConfigError, match="leave model.embedding_size out"):
            spec.close({}, vocabulary)
        return
    config = spec.close({}, vocabulary)
    assert config.model.count_parameters(vocabulary) == pytest.approx(24e6, rel=0.01)
    assert config.as_tables()["model"]["hidden_size"] == config.model.hidden_size


def test_a_changed_space_is_reported_by_name_a_changed_budget_is_not(tmp_path: Path) -> None:
    old = make_spec(tmp_path)
    assert differences(old, make_spec(tmp_path, changed("trials = 3", "trials = 9"))) == []
    assert differences(old, make_spec(tmp_path, changed("[0.1, 0.2]", "[0.3]"))) == []
    assert differences(old, make_spec(tmp_path, changed("hidden_size = 6", "hidden_size = 7"))) == [
        "model.hidden_size = 6, the file says 7"
    ]
    hardly = differences(old, make_spec(tmp_path, changed("high = 0.5", "high = 0.50000001")))
    assert hardly == ["model.output_dropout = 0 to 0.5, the file says 0 to 0.50000001"]
    wider = differences(old, make_spec(tmp_path, changed("high = 0.5", "high = 0.6")))
    assert wider == ["model.output_dropout = 0 to 0.5, the file says 0 to 0.6"]
    fixed = differences(old, make_spec(tmp_path, changed("{ choices = [true, false] }", "true")))
    assert fixed == ["model.tie_weights = one of true, false, the file says True"]


def test_a_default_written_out_is_no_difference(tmp_path: Path) -> None:
    assert differences(make_spec(tmp_path), make_spec(tmp_path, changed("bptt = 8", "bptt = 8\nseed = 1"))) == []


def test_optimizer_and_learning_rate_open_together_is_warned_about(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, changed("bptt = 8", "bptt = 8\noptimizer = { choices = ['adam', 'sgd'] }"))
    assert "30 for sgd" in spec.warnings()[0]
    assert make_spec(tmp_path).warnings() == []


@pytest.mark.parametrize(("text", "value"), [("0.4", 0.4), ("true", True), ("adam", "adam"), ("'sgd'", "sgd")])
def test_values_on_a_command_line_are_read_as_in_a_file(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_a_closed_config_is_read_from_json_beside_what_the_search_says_of_it(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    config = spec.close(next(spec.ends()), 10)
    tables: dict[str, object] = {**config.as_tables()}
    tables |= {"result": {"perplexity": 3}, "provenance": {}, "format": 2, "lmsearch": __version__}
    (tmp_path / "best-config.json").write_text(json.dumps(tables))
    assert load_config(tmp_path / "best-config.json") == config


def test_an_open_config_cannot_be_trained(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    with pytest.raises(ConfigError, match="open; close them, or search with: lmsearch run"):
        load_config(path)


def random_point(opened: dict[str, OpenValue], rng: random.Random) -> dict[str, Value]:
    point: dict[str, Value] = {}
    for path, value in opened.items():
        if isinstance(value, Choice):
            point[path] = rng.choice(value.choices)
        elif isinstance(value.low, float):
            point[path] = rng.uniform(value.low, value.high)
        else:
            point[path] = rng.randrange(int(value.low), int(value.high) + 1, int(value.step or 1))
    return point


@pytest.mark.parametrize("path", shipped_studies().values(), ids=lambda path: path.stem)
def test_every_study_that_travels_with_lmsearch_is_valid_everywhere(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ") and "?" in path.read_text(encoding="utf-8").splitlines()[0]
    spec = load_study(path)
    rng = random.Random(0)
    points = [*spec.ends(), *(random_point(dict(spec.open), rng) for _ in range(20))]
    if all(value.points() is not None for value in spec.open.values()):
        points += spec.grid_points()
    for point in [*points, *({**next(spec.ends()), **table} for table in spec.manual)]:
        config = spec.close(point, 50)
        with torch.device("meta"):
            model = LanguageModel(config.model, 50)
        assert sum(p.numel() for p in model.parameters()) == config.model.count_parameters(50)


def test_a_file_of_an_earlier_version_keeps_its_pruner_and_a_new_study_of_it_too(tmp_path: Path) -> None:
    silent = TINY_STUDY.replace('pruner = "none"\n', "")
    assert parse_study(silent, tmp_path).settings.pruner == "asha"
    before = parse_study(silent, tmp_path, defaults="0.3.0")
    assert (before.settings.pruner, before.pruner_options) == ("median", {})
    again = parse_study(before.text_from(tmp_path), tmp_path)
    assert again.settings.pruner == "median"
    asha = TINY_STUDY.replace('"none"', '"asha"')
    assert parse_study(asha, tmp_path).pruner_options == {}
    stopping = parse_study(asha, tmp_path, defaults="0.3.0")
    assert stopping.pruner_options == {"promote": False}
    assert parse_study(stopping.text_from(tmp_path), tmp_path).pruner_options == {"promote": False}
    with pytest.raises(ConfigError, match="pruner.bootstrap_count is for an asha that stops trials: add promote = fal"):
        parse_study(asha + "[pruner]\nbootstrap_count = 2\n", tmp_path)
