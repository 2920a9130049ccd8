"""What a study queues: the budget, the grid, manual points, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from lmsearch.config import DataConfig
from lmsearch.errors import ConfigError, LmsearchError, StudyError
from lmsearch.search.begin import begin
from lmsearch.search.budget import Request
from lmsearch.search.manage import enqueue
from lmsearch.store.opening import open_storage
from lmsearch.store.records import StudyInfo, find_study, lmsearch_studies, open_study
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tables import Ticket
from lmsearch.store.tickets import Changes, Holder, change_tickets, claim, list_tickets
from lmsearch.store.trials import read_study
from lmsearch.store.url import parse_url
from lmsearch.text.corpus import open_corpus
from tests.factories import TINY_STUDY, make_spec, write_corpus

MANUAL = '\n[[manual]]\n"model.output_dropout" = 0.3\n\n[[manual]]\n"train.learning_rate" = 2e-3\n'
HOLDER = Holder(worker="w", host="h", process=1, device="cpu")


class Owner:
    """A person who begins a study and comes back to it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.storage: FencedStorage = open_storage(parse_url(url))
        write_corpus(folder / "corpus")
        self.corpus = open_corpus(DataConfig(corpus=str(folder / "corpus")), folder / "cache")

    def begin(self, text: str = TINY_STUDY, **request: Any) -> StudyInfo:
        spec = make_spec(self.folder, text)
        return begin(self.storage, "tiny", spec, str(self.folder), self.corpus, Request(**request))

    def tickets(self) -> list[Ticket]:
        return list_tickets(self.storage, open_study(self.storage, "tiny").ref)

    def origins(self) -> str:
        """Give each ticket as a letter, by number: m, g, e, or s for search."""
        return "".join(ticket.origin[0] for ticket in self.tickets())


@pytest.fixture
def owner(tmp_path: Path, storage_url: str) -> Owner:
    return Owner(tmp_path, storage_url)


def test_the_file_says_how_many_and_asking_again_adds_none(owner: Owner) -> None:
    owner.begin()
    owner.begin()
    assert owner.origins() == "sss"


def test_only_an_explicit_total_or_a_changed_file_changes_it(owner: Owner) -> None:
    owner.begin()
    owner.begin(trials=5)
    owner.begin()
    assert owner.origins() == "sssss"
    owner.begin(TINY_STUDY.replace("trials = 3", "trials = 4"))
    assert owner.origins() == "ssss"


def test_more_adds_with_the_sampler_that_it_names(owner: Owner) -> None:
    owner.begin()
    owner.begin(more=2, sampler="tpe")
    assert [ticket.sampler for ticket in owner.tickets()] == ["random"] * 3 + ["tpe"] * 2


def test_a_smaller_total_withdraws_what_nobody_began_newest_first(owner: Owner) -> None:
    info = owner.begin()
    assert claim(owner.storage, info.ref, HOLDER) is not None
    owner.begin(trials=1)
    assert [ticket.number for ticket in owner.tickets()] == [0]
    owner.begin(trials=3)
    claim(owner.storage, info.ref, HOLDER)
    with pytest.raises(StudyError, match="cannot have 1 trials: 2 are started or have fixed values"):
        owner.begin(trials=1)
    assert len(owner.tickets()) == 3


def test_manual_points_come_first_and_count(owner: Owner) -> None:
    owner.begin(TINY_STUDY + MANUAL)
    owner.begin(TINY_STUDY + MANUAL)
    assert owner.origins() == "mms"
    assert [ticket.fixed for ticket in owner.tickets()[:2]] == [
        {"model.output_dropout": 0.3},
        {"train.learning_rate": 2e-3},
    ]


def test_the_grid_owes_exactly_its_points_once(owner: Owner) -> None:
    owner.begin(sampler="grid")
    owner.begin(sampler="grid")
    assert owner.origins() == "gggg"
    assert len({str(ticket.fixed) for ticket in owner.tickets()}) == 4


def test_all_four_samplers_add_to_one_study_in_turn(owner: Owner) -> None:
    text = TINY_STUDY + MANUAL
    owner.begin(text, sampler="manual")
    assert owner.origins() == "mm"
    owner.begin(text, sampler="grid")
    owner.begin(text, sampler="random", more=2)
    owner.begin(text, sampler="tpe", more=1)
    assert owner.origins() == "mmggggsss"
    assert [ticket.sampler for ticket in owner.tickets()][-3:] == ["random", "random", "tpe"]


@pytest.mark.parametrize(
    ("text", "request_", "message"),
    [
        (TINY_STUDY, {"sampler": "grid", "trials": 5}, "--trials 5 disagrees with the 4 trials"),
        (TINY_STUDY, {"sampler": "grid", "more": 5}, "--more adds trials of random, qmc, tpe or gp"),
        (TINY_STUDY, {"sampler": "manual"}, "needs [[manual]] tables"),
        (TINY_STUDY.replace(", grid = [0.01]", ""), {"sampler": "grid"}, "train.learning_rate is open without a grid"),
        (TINY_STUDY.replace("\nbatch_size = 4", "\nbatch_size = 5000"), {}, "too few for train.batch_size = 5000"),
    ],
)
def test_what_cannot_be_queued_is_refused_and_leaves_nothing_behind(
    owner: Owner, text: str, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(LmsearchError) as error:
        owner.begin(text, **request_)
    assert message in str(error.value) and error.value.exit_code == 2
    assert owner.storage.get_all_studies() == []


def test_a_changed_space_is_refused_by_naming_the_key_and_strategies_may_change(owner: Owner) -> None:
    owner.begin()
    with pytest.raises(StudyError, match="was started with model.hidden_size = 6, the file says 7"):
        owner.begin(TINY_STUDY.replace("hidden_size = 6", "hidden_size = 7"))
    info = owner.begin(TINY_STUDY.replace('"random"', '"tpe"').replace('"none"', '"asha"'))
    assert open_study(owner.storage, "tiny").spec.settings.sampler == info.spec.settings.sampler == "tpe"


def test_a_changed_corpus_is_refused_with_both_fingerprints(owner: Owner) -> None:
    info = owner.begin()
    write_corpus(owner.folder / "corpus", seed=5)
    owner.corpus = open_corpus(DataConfig(corpus=str(owner.folder / "corpus")), owner.folder / "cache")
    with pytest.raises(StudyError) as error:
        owner.begin()
    assert info.fingerprint in str(error.value) and owner.corpus.fingerprint in str(error.value)


def test_the_same_text_at_another_path_is_the_same_corpus(owner: Owner, tmp_path: Path) -> None:
    owner.begin()
    other = Owner(tmp_path / "moved", str(owner.storage.store_url.render_as_string(hide_password=False)))
    other.begin()
    assert other.origins() == "sss"


def test_a_moved_project_is_known_by_its_new_path(owner: Owner, tmp_path: Path) -> None:
    owner.begin()
    moved = Owner(tmp_path / "moved", str(owner.storage.store_url.render_as_string(hide_password=False)))
    moved.begin()
    assert open_study(owner.storage, "tiny").spec.data.corpus == str(tmp_path / "moved" / "corpus")


def test_an_empty_study_that_maximises_is_not_adopted(owner: Owner) -> None:
    import optuna

    optuna.create_study(storage=owner.storage, study_name="tiny", direction="maximize")
    with pytest.raises(StudyError, match="does not minimise"):
        owner.begin()


def test_a_study_is_rebuilt_from_the_store_alone(owner: Owner) -> None:
    info = owner.begin(TINY_STUDY + MANUAL)
    stored = open_study(owner.storage, "tiny")
    assert stored == info
    assert stored.spec.data.corpus == str(owner.folder / "corpus")


def test_a_study_of_another_program_is_not_taken_over(owner: Owner) -> None:
    import optuna

    theirs = optuna.create_study(storage=owner.storage, study_name="tiny")
    theirs.tell(theirs.ask(), 1.0)
    with pytest.raises(StudyError, match="was not made by lmsearch"):
        owner.begin()
    assert lmsearch_studies(owner.storage) == []


def test_a_creation_that_was_cut_short_is_finished(owner: Owner) -> None:
    from optuna.study import StudyDirection

    owner.storage.create_new_study([StudyDirection.MINIMIZE], "tiny")
    assert find_study(owner.storage, "tiny") is None
    info = owner.begin()
    assert owner.origins() == "sss"
    change_tickets(owner.storage, info.ref, lambda there: Changes(withdraw=[ticket.number for ticket in there]))
    owner.begin()
    assert owner.origins() == "sss"


def test_a_study_of_the_first_version_is_known(owner: Owner) -> None:
    """It kept what it knew of itself as a system attribute, which the dashboard's rename does not copy."""
    info = owner.begin()
    with owner.storage.transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql(
            "INSERT INTO study_system_attributes (study_system_attribute_id, study_id, key, value_json) "
            "SELECT 1000, study_id, key, value_json FROM study_user_attributes WHERE key = 'lmsearch'"
        )
        connection.exec_driver_sql("DELETE FROM study_user_attributes WHERE key = 'lmsearch'")
    assert lmsearch_studies(owner.storage) == ["tiny"]
    assert open_study(owner.storage, "tiny") == info
    owner.begin(trials=4)
    assert owner.origins() == "ssss"


def test_an_unknown_study_is_answered_with_the_nearest(owner: Owner) -> None:
    with pytest.raises(StudyError, match="no study 'tiny' in the store; the store has none yet"):
        open_study(owner.storage, "tiny")
    owner.begin()
    with pytest.raises(StudyError, match="no study 'tinny' in the store; did you mean tiny?"):
        open_study(owner.storage, "tinny")


def test_enqueued_values_are_checked_and_claimed_first(owner: Owner) -> None:
    info = owner.begin()
    _, all_tickets = enqueue(owner.storage, "tiny", {"model.output_dropout": 0.4})
    ticket = all_tickets[-1]
    assert (ticket.origin, ticket.fixed, len(owner.tickets())) == ("enqueued", {"model.output_dropout": 0.4}, 4)
    first = claim(owner.storage, info.ref, HOLDER)
    assert first is not None and first.number == ticket.number
    for values, message in (
        ({"model.dropout": 0.4}, "unknown name model.dropout; did you mean model.output_dropout"),
        ({"model.output_dropout": 0.9}, "out of its range 0 to 0.5"),
        ({"model.hidden_size": 9}, "model.hidden_size is fixed at 6"),
        ({"model.output_dropout": "much"}, "must be a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            enqueue(owner.storage, "tiny", values)
    assert len(owner.tickets()) == 4


def test_trials_of_other_programs_do_not_count(owner: Owner) -> None:
    import optuna

    info = owner.begin()
    study = optuna.load_study(study_name="tiny", storage=owner.storage)
    study.tell(study.ask(), 7.0)
    record = read_study(owner.storage, info)
    assert (record.total, record.done, len(record.trials)) == (3, 0, 1)
    assert record.trials[0].ticket is None
