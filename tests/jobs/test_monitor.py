from __future__ import annotations

from training_backend.engine.events import EventReader, EventWriter
from training_backend.jobs import Monitor


def metrics(events: EventWriter, step: int, loss: float, split: str = "train") -> None:
    events.write("metrics", step, split=split, values={"loss": loss}, lr=0.1, steps=10)


def test_reads_only_what_is_new(run):
    monitor = Monitor(run)
    assert monitor.update().events == []
    events = EventWriter(run.events_path)
    metrics(events, 1, 3.0)
    run.log_path.write_text("one\n", encoding="utf-8")
    first = monitor.update()
    assert ([event["step"] for event in first.events], first.log) == ([1], "one\n")
    metrics(events, 2, 2.0)
    with run.log_path.open("a", encoding="utf-8") as stream:
        stream.write("zwei ä\n")
    second = monitor.update()
    assert ([event["step"] for event in second.events], second.log) == ([2], "zwei ä\n")
    assert monitor.update().events == []
    assert monitor.series["train/loss"].values == [3.0, 2.0]
    assert monitor.series["train/lr"].steps == [1, 2]


def test_steps_repeated_after_a_resume_replace_the_lost_ones(run):
    events, monitor = EventWriter(run.events_path), Monitor(run)
    for step in (1, 2, 3, 4):
        metrics(events, step, float(step))
    monitor.update()
    for step in (3, 4, 5):
        metrics(events, step, 10.0 * step)
    monitor.update()
    assert monitor.series["train/loss"].steps == [1, 2, 3, 4, 5]
    assert monitor.series["train/loss"].values == [1, 2, 30, 40, 50]


def test_half_written_line_waits_for_its_end_and_a_damaged_one_is_skipped(run):
    reader = EventReader(run.events_path)
    run.events_path.write_bytes(b'{"type": "state", "st')
    assert reader.read() == []
    with run.events_path.open("ab") as stream:
        stream.write(b'ep": 3}\n')
    assert [event["step"] for event in reader.read()] == [3]
    with run.events_path.open("ab") as stream:
        stream.write(b'{"type": "metr')  # its writer is killed here
    events = EventWriter(run.events_path)
    events.write("state", 4, state="running")
    assert [event["step"] for event in reader.read()] == [4]
    assert reader.damaged == 1


def test_previews_and_warnings_are_kept(run):
    events, monitor = EventWriter(run.events_path), Monitor(run)
    events.write("preview", 1, folder="previews/step_00000001", case="a")
    events.write("warning", 1, message="One case is left out.", category="data", cases=["b"])
    monitor.update()
    assert monitor.preview == run.path / "previews" / "step_00000001"
    assert monitor.warnings == ["One case is left out."]


def test_first_look_at_a_long_log_begins_near_its_end(run):
    run.log_path.write_text("x" * 200_000 + "\nend\n", encoding="utf-8")
    text = Monitor(run).update().log
    assert text.endswith("end\n")
    assert len(text) < 100_000
