"""A report is shown as written, or as the sentences and clauses that training makes of it."""

from __future__ import annotations

from napari_med3dssl.report_box import ReportBox, numbered, summary

REPORT = "Bullae, in both lungs. No effusion.\n\nEmphysema."


def test_the_split_is_shown_and_counted(qtbot) -> None:
    box = ReportBox()
    qtbot.addWidget(box)
    box.show_report(REPORT)
    assert box.isVisibleTo(None)
    assert box.toPlainText() == REPORT
    assert box.told.text() == "3 sentences; it tells findings and impression apart."
    box.way.setCurrentText("Sentences")
    lines = ["Findings:", "1  Bullae, in both lungs.", "2  No effusion.", "Impression:", "3  Emphysema."]
    assert box.toPlainText().splitlines() == lines
    box.way.setCurrentText("Clauses")
    assert box.toPlainText().splitlines()[1:3] == ["1  Bullae,", "2  in both lungs."]
    assert box.told.text().startswith("4 clauses;")
    box.show_report("One. Two.")  # the choice stays
    assert box.toPlainText() == "1  One.\n2  Two."
    box.show_report("")
    assert not box.isVisibleTo(None)


def test_a_report_without_a_sentence_is_told() -> None:
    assert summary(" - . ", "sentence") == "This report has no sentence, so it cannot be learnt from."
    assert summary("Clear lungs.", "sentence") == "1 sentence; one part."
    assert numbered("Impression: Normal.", "sentence") == "Impression:\n1  Normal."
