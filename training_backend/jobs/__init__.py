"""Starting, finding, following and controlling runs from any process; never imports torch."""

from training_backend.engine.rundir import RunDirectory
from training_backend.jobs.launcher import Launched, cancel, launch, pause, preview, resume, save, stop
from training_backend.jobs.monitor import Monitor, Series, Update
from training_backend.jobs.queue import enqueue
from training_backend.jobs.registry import RunSummary, clone, delete, list_runs, new_run, runs_root, summary

__all__ = [
    "Launched",
    "Monitor",
    "RunDirectory",
    "RunSummary",
    "Series",
    "Update",
    "cancel",
    "clone",
    "delete",
    "enqueue",
    "launch",
    "list_runs",
    "new_run",
    "pause",
    "preview",
    "resume",
    "runs_root",
    "save",
    "stop",
    "summary",
]
