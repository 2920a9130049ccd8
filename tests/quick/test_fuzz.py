"""Mutated study files, configs and command lines: one sentence each, never a traceback, and in seconds."""

import json
import os
import random
import time
from pathlib import Path

import optuna
import pytest

from lmsearch.cli.main import GROUPS, main
from lmsearch.errors import LmsearchError
from lmsearch.search.budget import Request, check_request, decide_tickets
from lmsearch.search.plan import space_points
from lmsearch.search.strategies import make_pruner, make_sampler, suggest
from lmsearch.study.reading import load_config, load_study, parse_study
from lmsearch.study.shipped import shipped_studies
from tests.factories import TINY_STUDY, make_run

TIMES = int(os.environ.get("LMSEARCH_FUZZ", "1"))  # so many times as much, for `make heavy`

ODD = [
    "0", "-1", "1", "2", "1e-320", "1e308", "-1e308", "nan", "inf", "-inf", "9223372036854775807", "9223372036854775808",
    "99999999999999999999", "10_000_000", "0.1", "true", "false", '""', '"x"', '"\\u0000"', "[]", "[1]", "{}",
    "{ choices = [] }", "{ choices = [1, 1] }", "{ choices = [true, 1] }", "{ low = 1, high = 5, step = 1e-320 }",
    "{ low = 0, high = 1e300 }", "{ low = 1, high = 1000000000000, step = 7 }", "{ low = 0.0, high = 1.0, step = 0.1 }",
    "{ low = 1e-9, high = 1e9, log = true }", '{ same_as = "train.seed" }', '{ same_as = "model.num_layers" }',
    "1979-05-27", '"😀"', '"\\u202e"', '"tpe"', '"grid"', '"asha"', '"hyperband"', '"24M"', '"~nobody-there/x"', '"/dev/zero"',
]  # fmt: skip
NAMES = [
    "trials", "hours", "seed", "max_failures", "checkpoint_gb", "sampler", "pruner", "source", "corpus", "min_count",
    "max_vocabulary", "split", "normalize", "articles", "embedding_size", "hidden_size", "num_layers", "parameters",
    "output_dropout", "weight_dropout", "init_range", "learning_rate", "batch_size", "bptt", "epochs", "threads",
    "eval_batch_size", "eval_context", "clip_norm", "weight_decay", "n_startup_trials", "min_resource", "max_resource",
    "reduction_factor", "optimizer", "finetune", "nonmono", "anneal_factor", "patience", "unknown",
]  # fmt: skip


def mutated(text: str, chosen: random.Random) -> str:
    """Change a study file in a few places: values, keys, lines, characters."""
    lines = text.split("\n")
    for _ in range(chosen.randint(1, 4)):
        index = chosen.randrange(len(lines))
        match chosen.randrange(7):
            case 0 | 1 | 2:
                name = lines[index].partition("=")[0] if "=" in lines[index] and chosen.random() < 0.7 else ""
                lines[index] = f"{name.strip() or chosen.choice(NAMES)} = {chosen.choice(ODD)}"
            case 3:
                lines.insert(index, f"{chosen.choice(NAMES)} = {chosen.choice(ODD)}")
            case 4:
                del lines[index]
                lines = lines or [""]
            case 5:
                lines.insert(
                    index, chosen.choice(["[study]", "[sampler]", "[pruner]", "[[manual]]", "[model]", "[train]"])
                )
            case 6:
                at = chosen.randrange(len(lines[index]) + 1)
                lines[index] = lines[index][:at] + chosen.choice("={}[]\"'#\\\0é") + lines[index][at:]
    return "\n".join(lines)


def test_mutated_study_files_are_refused_in_one_sentence_or_give_a_point(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    chosen = random.Random(14)
    texts = [TINY_STUDY, *(path.read_text(encoding="utf-8") for path in shipped_studies().values())]
    read = refused = 0
    for number in range(1_000 * TIMES):
        text = mutated(chosen.choice(texts), chosen)
        began = time.monotonic()
        try:
            spec = parse_study(text, tmp_path)
            request = Request(sampler=None)
            check_request(spec, request)
            decide_tickets(spec, request, None, [])
            space_points(spec, 1_000)
            study = optuna.create_study(sampler=make_sampler(spec, spec.settings.sampler, 0))
            make_pruner(spec, spec.settings.pruner)
            spec.close(suggest(study.ask(), spec), 1_000)
            read += 1
        except LmsearchError as error:
            assert str(error), text
            refused += 1
        assert time.monotonic() - began < 10, text
        assert number < 0 or text
    assert read > 50 and refused > 300, (read, refused)


def test_mutated_configs_are_refused_in_one_sentence_or_read(tmp_path: Path) -> None:
    chosen = random.Random(15)
    tables = json.dumps(make_run().as_tables())
    odd = [
        "null",
        "1e400",
        "-1",
        "0",
        "99999999999999999999999",
        '"x"',
        "[]",
        "{}",
        "true",
        "NaN",
        "1e-320",
        '"\\ud800"',
    ]
    path = tmp_path / "config.json"
    read = refused = 0
    for _ in range(500 * TIMES):
        text = tables
        for _ in range(chosen.randint(1, 3)):
            parts = text.split(": ")
            at = chosen.randrange(1, len(parts))
            rest = parts[at].partition(",")
            parts[at] = chosen.choice(odd) + rest[1] + rest[2]
            text = ": ".join(parts)
            if chosen.random() < 0.2:
                cut = chosen.randrange(len(text))
                text = text[:cut] + chosen.choice(["", "}", "[" * 5_000, "\0"]) + text[cut + chosen.randrange(3) :]
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            load_config(path)
            read += 1
        except LmsearchError as error:
            assert "\n" not in str(error) or "TOML" in str(error) or "JSON" in str(error)
            refused += 1
    assert refused > 200, (read, refused)


SAFE = [
    command for title in ("search", "look", "model", "text", "keep") for command in GROUPS[title]
    if command.name not in ("run", "worker", "chaos", "dashboard", "train", "confirm", "pointer", "dynamic", "extend", "plan", "doctor")
]  # fmt: skip
WORDS = [
    "", "x", "-1", "0", "99999999999999999999", "nan", "inf", "1e-40", "..", "/", "/dev/null", "/proc/x", "~nobody/x",
    "a\x1b[31m", "\u202e", "x" * 5_000, "--json", "--yes", "--storage", "sqlite:///x.db", "sqlite:///~nobody/x.db",
    "postgresql://me:p@ss@db/lm", "postgresql://me@db/lm?x=1", "--where", "perplexity <", "--sort", "--limit", "--words",
    "--temperature", "--top-p", "--text", "--set", "a=b", "--format", "csv", "--figure", "curves", "--failed", "list",
    "show", "convert", "--split", "1,2", "--min-count", "--store-timeout", "1s", "--device", "cuda:7",
]  # fmt: skip


def test_odd_command_lines_end_in_seconds_with_a_code_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = random.Random(16)
    for _ in range(400 * TIMES):
        words = [str(chosen.choice(SAFE).name), *chosen.choices(WORDS, k=chosen.randint(0, 5))]
        began = time.monotonic()
        with pytest.raises(SystemExit) as ended:
            main([*words])
        said = capfd.readouterr()
        assert ended.value.code in (0, 1, 2, 75, 130), words
        assert "Traceback" not in said.err and "\x1b[31m" not in said.err + said.out, words
        assert time.monotonic() - began < 15, words


def test_load_study_of_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml", Path("/dev/full"), tmp_path / ("x" * 300)):
        with pytest.raises(LmsearchError):
            load_study(path)
