"""A search from Python: the README's lines, with real workers."""

from pathlib import Path

import pytest

from lmsearch.errors import ConfigError
from lmsearch.launch.search import search
from lmsearch.search.start import SearchRequest
from tests.factories import write_study


def test_a_search_runs_from_python_and_again_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path)
    request = SearchRequest(study_file="tiny.toml", workers=1, trials=2)
    *_, last = search(request, "sqlite:///store.db")
    assert last.record.done == last.record.total == 2 and last.record.best is not None
    (again,) = search(request, "sqlite:///store.db")
    assert [trial.curve for trial in again.record.trials] == [trial.curve for trial in last.record.trials]
    with pytest.raises(ConfigError, match="there is no study file 'tyni.toml'"):
        next(search(SearchRequest(study_file="tyni.toml")))
