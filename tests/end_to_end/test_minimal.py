"""`examples/minimal.py`: the idea, over Optuna alone."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/minimal.py"


def test_the_minimal_example_resumes_the_trial_of_a_killed_worker(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 150
    command = [sys.executable, "-u", str(EXAMPLE), "--trials", "2", "--lease-seconds", "0.5"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if "epoch 2" in line:
                killed.kill()
                break
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "trial 0 is resumed" in said and re.search(r"^best: trial [01], perplexity \d", said, re.MULTILINE)
    epochs = [int(number) for number in re.findall(r"trial 0: epoch (\d)", said)]
    assert epochs == list(range(epochs[0], 7)) and epochs[0] in (2, 3)  # killed before or after it was saved
    assert re.findall(r"trial 1: epoch (\d)", said) == list("123456")
