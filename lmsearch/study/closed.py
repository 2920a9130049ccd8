"""A closed config as a file has it."""

import os
from pathlib import Path
from typing import Any

from lmsearch.config import BUILT_IN_CORPORA, RunConfig


def corpus_from(folder: Path, corpus: str) -> str:
    """Return a corpus as a file in `folder` names it: a path from there, or the name of a built-in one."""
    return corpus if corpus in BUILT_IN_CORPORA else os.path.relpath(corpus, folder.resolve())


def config_tables(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return a config's tables for a file in `folder`, from which a corpus that is a path is named."""
    tables = config.as_tables()
    tables["data"]["corpus"] = corpus_from(folder, config.data.corpus)
    return dict(tables)
