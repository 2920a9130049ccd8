"""What the Ray launcher says of nodes that are not as they should be; needs no Ray."""

from pathlib import Path

import pytest

from lmsearch.launch.ray_core import Actor, RayError, RayLauncher, WorkerActor
from lmsearch.version import __version__


def lost(error: Exception, answers: int) -> int:
    """Return the exit code of a worker whose actor is gone."""
    placed = Actor(name="ray-1", log=Path("ray-1.log"), handle=None, answers=answers)
    return RayLauncher.__new__(RayLauncher)._lost(placed, error).code


def test_a_node_with_another_lmsearch_is_named_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as refused:
        WorkerActor("ray-1", ["tiny"], str(tmp_path), {}, "9.9.9")
    wanted = f"has lmsearch {__version__}, not 9.9.9"
    assert wanted in str(refused.value) and not list(tmp_path.iterdir())
    told = RuntimeError(f"The actor died:\n  ray::WorkerActor\nRuntimeError: {refused.value}")
    with pytest.raises(RayError, match=wanted) as sentence:
        lost(told, answers=0)
    assert "\n" not in str(sentence.value) and str(sentence.value).startswith("the node ")


def test_an_actor_that_is_lost_later_is_a_worker_that_died() -> None:
    assert lost(RuntimeError("the node died"), answers=3) == 1
    assert lost(RuntimeError("The actor is dead because its node has died."), answers=0) == 1
