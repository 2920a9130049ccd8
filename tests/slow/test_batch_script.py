"""The batch script for Slurm, run by bash: its worker joins, and is saved and queued again as the time limit nears."""

import os
import signal
import subprocess
from pathlib import Path

from lmsearch.launch.slurm import script
from lmsearch.search.placement import Placement
from lmsearch.store.workers import list_workers
from tests.bureau import Bureau, wait_for
from tests.factories import TINY_STUDY

LONG = TINY_STUDY.replace("epochs = 3", "epochs = 4000").replace("trials = 3", "trials = 1")


def test_the_scripts_worker_joins_and_a_time_limit_saves_it_and_queues_the_job_again(
    tmp_path: Path, prepared_sqlite: Path
) -> None:
    (tmp_path / "store.db").write_bytes(prepared_sqlite.read_bytes())
    bureau = Bureau(tmp_path, f"sqlite:///{tmp_path / 'store.db'}", LONG)
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    words = ["tiny", "--device", "cpu", "--corpus", str(tmp_path / "corpus")]
    placement = Placement(kind="slurm", setup=("export SET_UP=yes",))
    text = script("tiny", "key", tmp_path / "runs/tiny", placement, lambda device: words, ["auto"])
    (tmp_path / "job.sh").write_text(text)
    environment = dict(os.environ) | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "LMSEARCH_STORAGE": bureau.url,
        "SLURM_ARRAY_JOB_ID": "17",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_ID": "20",
    }
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)
    try:
        wait_for(lambda: any(ticket.epoch > 1 for ticket in bureau.tickets()))
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) == 138
    finally:
        job.kill()
        job.wait()
    (ticket,) = bureau.tickets()
    assert ticket.state == "open" and ticket.checkpoint is not None
    (row,) = list_workers(bureau.storage, bureau.info.ref)
    assert (row.name, row.launcher, row.reason) == ("slurm-17-3-0", "slurm", "stopped")
    assert (tmp_path / "asked").read_text() == "requeue 20\n"
