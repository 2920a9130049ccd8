"""Configs, ranges, and what is refused."""

import json

import pytest

from lmsearch.config import FIELD_TYPES, RunConfig, coerce, parse_budget
from lmsearch.errors import ConfigError
from lmsearch.space import Choice, FloatRange, IntRange
from lmsearch.spelling import nearest
from tests.factories import make_run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.output_dropout": 1.0}, "model.output_dropout must be at least 0 and below 1, got 1.0"),
        ({"model.hidden_size": 0}, "model.hidden_size must be at least 1, got 0"),
        ({"train.learning_rate": 0}, "train.learning_rate must be above 0"),
        ({"train.bptt": 1}, "train.bptt must be at least 2, got 1"),
        ({"train.optimizer": "adm"}, "train.optimizer 'adm' is not known; there are: adam, adamw, sgd, nt-asgd"),
        ({"train.anneal_factor": 0.5}, "train.anneal_factor must be at least 1"),
        ({"train.epochs": True}, "train.epochs must be a whole number, got True"),
        ({"train.epochs": 2.5}, "train.epochs must be a whole number, got 2.5"),
        ({"model.tie_weights": 1}, "model.tie_weights must be true or false, got 1"),
        ({"train.learning_rate": "1e-4"}, "train.learning_rate must be a number, got '1e-4'"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate must be a number, got nan"),
        ({"train.seed": 1 << 63}, "train.seed must be a whole number"),
        ({"train.seed": 10**400}, "train.seed must be a whole number"),
        ({"data.corpus": ""}, "data.corpus is empty"),
    ],
)
def test_a_value_that_makes_no_valid_run_is_refused_with_name_and_value(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        make_run(**change)
    assert message in str(error.value)


def test_a_number_has_its_settings_type_however_it_is_written() -> None:
    assert coerce("train.learning_rate", 1) == 1.0 and isinstance(coerce("train.learning_rate", 1), float)
    assert coerce("model.hidden_size", 2e2) == 200 and isinstance(coerce("model.hidden_size", 2e2), int)


def test_articles_are_shuffled_by_default_only_where_there_are_many() -> None:
    for corpus in ("python-docs", "folder"):  # as the corpus is meant
        run = RunConfig.from_paths({"data.corpus": corpus})
        assert run.data.shuffle_articles is None and "shuffle_articles" not in run.as_tables()["data"]


def test_a_config_survives_its_tables() -> None:
    counted = make_run(model__num_layers=2, data__min_count=2, model__decoder="adaptive", model__cutoffs=(3, 7))
    given = make_run(data__vocabulary="words.txt")
    for config, missing in ((counted, {"data.vocabulary"}), (given, {"data.min_count", "model.cutoffs"})):
        tables = json.loads(json.dumps(config.as_tables()))
        flat = {f"{section}.{name}": value for section, table in tables.items() for name, value in table.items()}
        assert set(flat) == set(FIELD_TYPES) - missing
        assert RunConfig.from_paths(flat) == config


@pytest.mark.parametrize(
    ("text", "number"), [("24M", 24_000_000), ("300k", 300_000), ("1_500", 1500), ("1.5m", 1_500_000)]
)
def test_budgets_are_read_as_people_write_them(text: str, number: int) -> None:
    assert parse_budget(text) == number


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="24M"):
        parse_budget("many")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FloatRange(low=1.0, high=1.0), "low < high, got 1.0 and 1.0"),
        (lambda: FloatRange(low=0.0, high=1.0, log=True), "low above 0"),
        (lambda: FloatRange(low=0.0, high=1.0, step=2.0), "step must be above 0 and at most"),
        (lambda: FloatRange(low=0.1, high=1.0, log=True, step=0.1), "not both"),
        (lambda: FloatRange(low=0.0, high=1.0, grid=(0.5, 2.0)), "grid's value 2.0 is outside"),
        (lambda: FloatRange(low=0.0, high=1.0, grid=()), "at least one"),
        (lambda: IntRange(low=1, high=9, grid=(3, 3)), "must differ"),
        (lambda: IntRange(low=0, high=8, step=4, grid=(5,)), "outside the range"),
        (lambda: IntRange(low=0, high=10, step=-1), "step"),
        (lambda: FloatRange(low=0.0, high=0.7, step=0.2), "a whole number of steps above low"),
        (lambda: FloatRange(low=0.001, high=0.01, step=0.001, grid=(0.0015,)), "grid's value 0.0015 is outside"),
        (lambda: Choice(choices=(True,)), "at least two"),
        (lambda: Choice(choices=("a", "a")), "must differ"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()  # type: ignore[operator]
    assert message in str(error.value)


def test_choices_are_their_own_grid_and_ranges_have_only_what_is_named() -> None:
    assert Choice(choices=(True, False)).points() == (True, False)
    assert FloatRange(low=0.0, high=1.0).points() is None
    assert IntRange(low=35, high=70, step=5).contains(40) and not IntRange(low=35, high=70, step=5).contains(41)


def test_a_near_name_is_suggested_and_a_far_one_answered_with_the_list() -> None:
    assert nearest("dropuot", ["dropout", "bptt"]) == "; did you mean dropout?"
    assert nearest("zzz", ["dropout", "bptt"]) == "; there are: dropout, bptt"


@pytest.mark.parametrize(
    "value",
    [
        FloatRange(low=0.1, high=0.7),
        FloatRange(low=1e-4, high=3e-2, log=True),
        FloatRange(low=0.0, high=0.6, step=0.2),
        IntRange(low=3, high=9),
        IntRange(low=10, high=50, step=10),
        IntRange(low=2, high=900, log=True),
        Choice(choices=("a", "b", "c")),
    ],
)
def test_every_share_of_a_range_is_a_value_of_it_and_leads_back(value: FloatRange | IntRange | Choice) -> None:
    drawn = [value.from_share(number / 1000) for number in range(1001)]
    assert all(value.contains(one) for one in drawn)
    back = [value.from_share(value.share_of(one)) for one in drawn]
    assert back == (drawn if isinstance(drawn[0], str) else pytest.approx(drawn))
    first, last = drawn[0], drawn[-1]
    ends = (value.ends()[0], value.ends()[-1])
    assert (first, last) == (ends if isinstance(first, str) else pytest.approx(ends))
    count = value.count()
    if count is not None and not (isinstance(value, IntRange) and value.log):
        assert len(set(drawn)) == count  # and each has an equal part
        assert max(map(drawn.count, drawn)) - min(map(drawn.count, drawn)) <= 2
