"""What optuna-dashboard shows of a study beside its own pages: a note, notes of trials, plots and files."""

import contextlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
from optuna.trial import Trial

from lmsearch.errors import NothingToShowError, StudyError
from lmsearch.folders import BEST_CONFIG, REPORT, STUDY_FILE, TRIALS_TABLE, study_folder
from lmsearch.results.best import holds_results_of
from lmsearch.results.commands import Command, next_steps
from lmsearch.results.forecasts import paused_sentences
from lmsearch.results.progress import State, state_of
from lmsearch.results.ranges import edge_sentence, edges
from lmsearch.results.reading import Results
from lmsearch.results.verdict import verdict
from lmsearch.spelling import count, spell_value
from lmsearch.store.records import StudyInfo, StudyRecord, TrialRecord, optuna_study, readable_studies
from lmsearch.store.storage import FencedStorage
from lmsearch.store.tickets import present, read_stop

FILES = {
    BEST_CONFIG: "application/json",
    REPORT: "text/html",
    TRIALS_TABLE: "text/csv",
    STUDY_FILE: "text/plain",
    "best-model.zip": "application/zip",
}
"""A study's files that the dashboard offers, with what they are."""

END_OF_OURS = "\n\n---\n*The part above is kept current by lmsearch; what is written below this line stays.*\n"
_LARGEST_PLOT = 200_000  # characters, each 2,045 of them one write
_NOTES_AT_ONCE = 50  # of trials, each two writes
_ARTIFACT = "artifacts:"  # where Optuna keeps what is known of a file, among a study's system attributes

Plots = Mapping[str, Callable[[Results], Any]]
"""What makes each plot, by name; it raises `NothingToShowError`.

`figures.dashboard_figures()` is passed in, since plotly takes a second to load.
"""


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """Writes what has changed since it last did."""

    storage: FencedStorage
    command: Command
    _drawn: dict[str, str] = field(default_factory=dict)  # what was last written of each plot

    def publish(
        self, results: Results, folder: Path, plots: Plots | None = None, most_notes: int = _NOTES_AT_ONCE
    ) -> None:
        """Write notes, files and, given what makes them, plots; `folder` is where the study's files are."""
        study = optuna_study(self.storage, results.name)
        self._write_note(study, results, folder)
        self._write_trial_notes(study, results, most_notes)
        self._offer_files(results.record.info, folder)
        if plots is not None and not results.record.info.confirms:
            self._write_plots(study, results, plots)

    def _write_note(self, study: optuna.Study, results: Results, folder: Path) -> None:
        ref = results.record.info.ref
        state = state_of(results.record, present(self.storage), read_stop(self.storage, ref))
        report = f"/artifacts/{ref.id}/{artifact_id(results.record.info, REPORT)}"
        ours = study_note(results, self.command, state, report if file_of(folder, REPORT).exists() else "")
        before = optuna_dashboard.get_note(study)
        _, line, theirs = before.partition(END_OF_OURS)
        note = ours + END_OF_OURS + (theirs if line else before)
        if note != before:
            optuna_dashboard.save_note(study, note)

    def _write_trial_notes(self, study: optuna.Study, results: Results, most: int) -> None:
        attributes = self.storage.get_study_system_attrs(study._study_id)
        written = 0
        for trial in results.record.trials:
            note = trial_note(trial)
            if not note or f"dashboard:{trial.id}:note_ver" in attributes or written >= most:
                continue
            optuna_dashboard.save_note(Trial(study, trial.id), note)
            written += 1

    def _write_plots(self, study: optuna.Study, results: Results, plots: Plots) -> None:
        for name, make in plots.items():
            try:
                figure = make(results)
            except NothingToShowError:
                continue
            drawn = figure.to_json()
            if self._drawn.get(name) != drawn and len(drawn) <= _LARGEST_PLOT:
                optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=f"lmsearch-{name}")
                self._drawn[name] = drawn

    def _offer_files(self, info: StudyInfo, folder: Path) -> None:
        there = self.storage.get_study_system_attrs(info.ref.id)
        for name, kind in FILES.items():
            key = _ARTIFACT + artifact_id(info, name)
            if file_of(folder, name).exists() and not there.get(key):
                meta = {"artifact_id": artifact_id(info, name), "filename": name, "mimetype": kind, "encoding": None}
                self.storage.set_study_system_attr(info.ref.id, key, json.dumps(meta))


def artifact_id(info: StudyInfo, name: str) -> str:
    """Return the id under which a study's file is offered: always the same, so that it is offered once."""
    return str(uuid.uuid5(uuid.UUID(info.ref.key), name))


def file_of(folder: Path, name: str) -> Path:
    """Return the file, or for the model the folder, that is offered under a name."""
    return folder / name.removesuffix(".zip")


def find_artifact(storage: FencedStorage, runs: Path, wanted: str) -> tuple[str, Path] | None:
    """Return name and path of the file that is offered under an id; None where there is none here."""
    for info in readable_studies(storage)[0]:
        for name in FILES:
            if artifact_id(info, name) != wanted:
                continue
            with contextlib.suppress(StudyError):  # a name that would lead elsewhere
                path = file_of(folder := study_folder(info.ref.name, runs), name)
                return (name, path) if path.exists() and holds_results_of(folder, info) else None
    return None


def study_note(results: Results, command: Command, state: State, report: str = "") -> str:
    """Describe a study in Markdown: what it is, how far, what is best, how to join, confirm and add to it.

    `report` is where the report is served, "" where there is none.
    """
    record, name = results.record, results.name
    info = record.info
    if info.confirms:
        return _confirmation_note(record, command)
    comments = [line.lstrip("# ").rstrip() for line in info.spec.text.splitlines() if line.startswith("#")]
    lines = [f"## {_plain(name)}", ""]
    lines += [_plain(" ".join(line for line in comments[:6] if line))] if comments else []
    # Who is at work changes without anybody writing it here.
    stands = f", {_plain(str(state))}" if state.name in ("stopping", "stopped") else ""
    lines += ["", f"{_plain(info.corpus)}; {record.done} of {record.total} trials have ended{stands}.", ""]
    lines += [f"[The report]({report})", ""] if report else []
    lines += [_plain(sentence) + " " for sentence in (*verdict(results), *paused_sentences(record))]
    if results.winner is not None:
        lines += ["", "| searched value | best |", "| --- | --- |"]
        lines += [f"| {path} | {_plain(spell_value(value))} |" for path, value in results.winner.params.items()]
    lines += ["", *(f"- {_plain(edge_sentence(edge))}." for edge in edges(record))]
    values = results.winner.params if results.winner is not None else {}
    example = next((f"{path}={spell_value(value)}" for path, value in values.items()), "model.output_dropout=0.4")
    lines += ["", "This page cannot add a trial. In a terminal:", "", "```sh"]
    lines += [f"{command(step.words)}    # {step.why}" for step in next_steps(results)]
    if record.done < record.total and not state.stop.stopped:
        lines.append(command(["lmsearch", "worker", name]) + "    # join, from this or any host")
    lines += [
        command(["lmsearch", "enqueue", name, example]) + "    # add a trial with values of your own",
        command(["lmsearch", "report", name]) + "    # the full report on one page",
        "```",
    ]
    return "\n".join(lines)


def _confirmation_note(record: StudyRecord, command: Command) -> str:
    study = record.info.confirms
    return "\n".join(
        (
            f"## {_plain(record.info.ref.name)}",
            "",
            f"The leaders of {_plain(study)} trained again on fresh seeds: {record.done} of {record.total} trainings "
            f"have ended. This study belongs to {_plain(study)}, whose note has the result. The "
            "lowest perplexity here is the luckiest seed, not the best configuration.",
            "",
            "```sh",
            *(
                [command(["lmsearch", "worker", record.info.ref.name]) + "    # join, from this or any host"]
                if record.done < record.total
                else []
            ),
            command(["lmsearch", "report", study]) + "    # is the best really the best?",
            "```",
        )
    )


def trial_note(trial: TrialRecord) -> str:
    """Return in Markdown why a trial ended, with a sample of its model; "" where there is nothing to say."""
    if trial.ended is None:
        return ""
    if trial.outcome in ("failed", "diverged", "infeasible"):
        text = f"**{trial.outcome}**: {_plain(trial.reason or 'no reason is known')}"
        return text + (f"\n\n```text\n{trial.traceback[-1500:].replace('```', '')}\n```" if trial.traceback else "")
    if trial.outcome == "pruned" and trial.curve:
        pruner = f" by {trial.ticket.pruner}" if trial.ticket is not None else ""
        return f"**pruned**{pruner} after {count(len(trial.curve), 'epoch')}, at perplexity {trial.perplexity:.2f}."
    return f"Text generated by its model:\n\n> {_plain(trial.sample)}" if trial.sample else ""


def _plain(text: str) -> str:
    """Keep Markdown from reading what a person or a model wrote."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|!" else character for character in text)
