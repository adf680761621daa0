"""Runs as Slurm jobs: the batch script as text, and its submission where ``sbatch`` exists."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import training_backend
from training_backend.config.model import ConfigModel
from training_backend.engine.rundir import RunDirectory
from training_backend.errors import ConfigError, RunError
from training_backend.files import write_text


class SlurmConfig(ConfigModel):
    """What to ask the cluster for."""

    partition: str = ""
    """Partition; empty takes the cluster's default."""
    hours: float = 24.0
    """Time limit; the run saves two minutes before it and is queued again."""
    cpus: int = 8
    """Processors per device."""
    memory_gb: int = 32
    """Main memory of the job."""
    account: str = ""
    """Account to charge; empty takes the user's default."""


def batch_script(run: RunDirectory, slurm: SlurmConfig | None = None) -> str:
    """Text of an sbatch file that trains `run` on one node, saves before its time limit and goes on when requeued."""
    asked = slurm or SlurmConfig()
    engine = run.config().engine
    minutes = max(1, round(asked.hours * 60))
    options = {
        "job-name": run.path.name,
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(asked.cpus * engine.devices),
        "mem": f"{asked.memory_gb}G",
        "time": f"{minutes // 60:02d}:{minutes % 60:02d}:00",
        "output": str(run.log_path.resolve()),
        "open-mode": "append",
        "signal": "B:TERM@120",
        "requeue": "",
    }
    if engine.device != "cpu":
        options["gpus"] = str(engine.devices)
    options.update({key: value for key, value in (("partition", asked.partition), ("account", asked.account)) if value})
    for key, value in options.items():
        if "\n" in value:
            raise ConfigError(f"The Slurm option {key} must be one line, found {value!r}.")
    header = [f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}" for key, value in options.items()]
    source = shlex.quote(str(Path(training_backend.__file__).parents[1]))
    command = shlex.join([sys.executable, "-m", "training_backend", "run", str(run.path.resolve())])
    body = [
        f"export MED3DSSL_WORKER=1 PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"{command} &",
        "child=$!",
        "trap 'kill -TERM $child; wait $child; scontrol requeue $SLURM_JOB_ID' TERM",
        "wait $child",
    ]
    return "\n".join(["#!/bin/bash", *header, "", *body, ""])


def submit(run: RunDirectory, slurm: SlurmConfig | None = None) -> str:
    """Hand a run to Slurm; answers the job's number."""
    script = run.path / "job.sbatch"
    write_text(script, batch_script(run, slurm))
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise RunError("There is no Slurm on this machine.", f"Copy {script} to the cluster and submit it there.")
    done = subprocess.run([sbatch, "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"Slurm refused the run: {done.stderr.strip()}")
    job = done.stdout.strip().partition(";")[0]
    run.update(state="queued", reason=f"Waits as Slurm job {job}.", slurm_job=job)
    return job
