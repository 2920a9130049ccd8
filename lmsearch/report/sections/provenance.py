"""The study file and the origin of the report."""

from pathlib import Path

from lmsearch.report.page import Content, Table
from lmsearch.report.topic import Topic
from lmsearch.results.best import source_commit, versions
from lmsearch.results.commands import Command
from lmsearch.results.reading import Results


def _write(results: Results, command: Command) -> Content:
    info = results.record.info
    rows = [
        ("corpus", f"{info.corpus} (fingerprint {info.fingerprint})"),
        ("vocabulary", f"{info.vocabulary_size:,} words"),
        ("study key", info.ref.key),
        *versions().items(),
        ("commit", source_commit() or "unknown"),
        ("made with", command(["lmsearch", "report", results.name])),
    ]
    return Content(
        code=[info.spec.text_from(Path("runs") / results.name)],
        tables=[Table(head=("what", "which"), rows=rows)],
    )


TOPIC = Topic(
    about="The study file, the corpus with its fingerprint, versions, and the command that wrote the report.",
    title="The study file and the origin of this report",
    write=_write,
    data={
        "corpus": lambda results: {
            "description": results.record.info.corpus,
            "fingerprint": results.record.info.fingerprint,
            "vocabulary_size": results.record.info.vocabulary_size,
        },
        "versions": lambda _: versions(),
        "commit": lambda _: source_commit(),
    },
)
