"""Tests that start no process and no server: they run in seconds, on every change. What needs one lies elsewhere."""

import os
import subprocess
from typing import Any, NoReturn

import pytest

_WHERE = "a test in tests/quick starts no process; move it to the folder of its package"


@pytest.fixture
def cli() -> NoReturn:
    """Refuse to run a command."""
    raise AssertionError(_WHERE)


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start a process."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(_WHERE)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse)
