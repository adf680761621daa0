"""The command line: usage, errors as sentences, flags from the configuration models."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from training_backend.api.runs import changes
from training_backend.cli import main
from training_backend.data.ingest import ingest
from training_backend.data.phantoms import write_cohort
from training_backend.errors import ConfigError
from training_backend.evaluate.predict import chosen_device
from training_backend.flags import gathered
from training_backend.settings import _defaults


def test_without_arguments_the_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for name in (
        "demo",
        "doctor",
        "pretrain",
        "finetune",
        "predict",
        "embed",
        "reconstruct",
        "evaluate",
        "find",
        "compare",
        "runs",
    ):
        assert name in text


def test_a_group_without_a_command_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert "resume" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["fly"], ["runs", "fly"]])
def test_an_unknown_command_fails_and_says_so(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "fly" in capsys.readouterr().err


def test_errors_are_one_sentence_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == f"{tmp_path} is not a run directory: it has no run.json."


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("predict", "med3dssl predict needs --run, --input and --output. See med3dssl predict --help."),
        ("pretrain", "med3dssl pretrain needs --data and --output. See med3dssl pretrain --help."),
        ("weights export", "med3dssl weights export needs FILE and --output. See med3dssl weights export --help."),
        ("data inspect", "med3dssl data inspect needs PATH. See med3dssl data inspect --help."),
        ("data inspect a b", "med3dssl data inspect does not know b. See med3dssl data inspect --help."),
        ("embed --kind x --weights a --input b --output c", "does not know --kind and x. Perhaps --kinds was meant."),
        ("evaluate --run a --data b --split tent", "Invalid choice 'tent' for argument '--split'. Expected one of"),
        ("pretrain --data a --output b --optim.lr x", "Error parsing --optim.lr: could not convert string to float"),
        ("predict --fly", "needs --run, --input and --output. med3dssl predict does not know --fly. See"),
    ],
)
def test_arguments_that_are_missing_unknown_or_wrong_are_one_sentence(
    line: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["runs", "show", "--help"])
    assert ended.value.code == 0
    assert "usage: med3dssl runs show" in capsys.readouterr().out


@pytest.mark.parametrize("runs", [[], ["one"]])
def test_a_comparison_of_fewer_than_two_runs_is_refused(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *runs]) == 1
    assert f"at least two runs, but {len(runs) or 'none'} was named" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m training_backend runs list --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage")
    assert done.stderr == ""


def test_an_unknown_preset_or_method_is_answered_with_the_known_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "--method", "mae3", "--data", str(tmp_path), "--output", str(tmp_path / "run")]) == 1
    assert "'mae3d'" in capsys.readouterr().err
    assert main(["pretrain", "--preset", "huge", "--data", str(tmp_path), "--output", str(tmp_path / "run")]) == 1
    assert "There is no preset 'huge'. Choose one of tiny" in capsys.readouterr().err


def test_a_file_lies_over_the_preset_and_flags_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("optim: {lr: 0.5}\nmethod: {name: mae3d, mask_ratio: 0.6}\npreset: tiny\n")
    config = _defaults("pretrain", ["--config", str(file)])
    assert config.preset == "tiny"
    assert config.optim.lr == 0.5
    assert config.method.model_dump()["mask_ratio"] == 0.6


def test_a_misspelt_key_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("optim: {leer: 0.5, lrr: 1}\n")
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        _defaults("pretrain", ["--config", str(file)])


def test_changes_become_a_nested_dictionary() -> None:
    assert changes(("optim.lr=3e-4", "optim.epochs=2", "seed=4")) == {"optim": {"lr": "3e-4", "epochs": 2}, "seed": 4}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        changes(("optim.lr",))


def test_settings_that_are_given_flag_by_flag_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def runs_clone(folder: Path, output: Path, set: tuple[str, ...] = (), detach: bool = False) -> None:
        seen.append(set)
        assert (folder, output, detach) == (Path("a"), Path("b"), True)

    monkeypatch.setattr("training_backend.api.runs_clone", runs_clone)
    for line in (
        "a --set x=1 y=-2 --output b --set z=3 --detach",
        "a --set=x=1 --set y=-2 --detach --output b --set z=3",
    ):
        assert main(["runs", "clone", *line.split()]) == 0
    assert main(["runs", "clone", "a", "--output", "b", "--detach", "--set", "x=1", "y=-2", "z=3"]) == 0
    assert seen == [("x=1", "y=-2", "z=3")] * 3


def test_lists_of_other_commands_grow_with_each_flag_and_single_values_do_not() -> None:
    assert gathered(["--cases", "a", "--levels", "-1", "--cases", "b"], {"--cases", "--levels"}) == [
        "--cases", "a", "b", "--levels", "-1"
    ]  # fmt: skip
    assert gathered(["--lr", "1", "--lr", "2"], {"--cases"}) == ["--lr", "1", "--lr", "2"]


def test_a_file_in_the_place_of_the_output_folder_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    scan = tmp_path / "scan.nii.gz"
    assert main(["data", "prepare", "tangerine", str(scan), "--output", str(tmp_path / "taken")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == f"{tmp_path / 'taken'} cannot be read or written: File exists."


def test_nothing_to_prepare_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "tangerine", "--output", str(tmp_path / "npz")]) == 1
    assert "No scan was given." in capsys.readouterr().err


def test_a_folder_that_is_no_dataset_leaves_no_run_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--preset", "tiny", "--data", str(tmp_path), "--output", str(tmp_path / "run")]) == 1
    assert "is not a dataset" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"optim: [1\n", b"hello\n", b"\xff\xfe\xff", b"method: mae3d\n", b"optim: 3\n"])
def test_a_configuration_that_is_none_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        _defaults("pretrain", ["--config", str(file)])


@pytest.mark.parametrize(
    "pairs", [("optim=1", "optim.lr=2"), ("optim.lr=2", "optim=1"), ("seed=1", "seed=2"), ("optim.lr=[1",)]
)
def test_changes_that_cannot_be_read_are_a_sentence(pairs: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        changes(pairs)


def test_the_help_of_bench_names_the_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "left_atrium" in capsys.readouterr().out


def test_a_device_that_is_none_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="banana"):
        chosen_device("banana")


def test_a_run_that_failed_before_its_first_step_makes_room_for_the_corrected_command(tmp_path: Path) -> None:
    ingest([write_cohort(tmp_path / "cohort", 3, shape=(16, 24, 24))], tmp_path / "dataset")
    small = ["--preset", "tiny", "--data.size", "16", "16", "16", "--optim.max-steps", "1", "--engine.threads", "1"]
    command = ["finetune", "--data", str(tmp_path / "dataset"), "--output", str(tmp_path / "run"), *small]
    assert main([*command, "--weights", str(tmp_path / "nowhere.pth")]) == 1
    assert not (tmp_path / "run").exists()
    assert main([*command, "--task.classes", "background", "lung"]) == 1
    assert (tmp_path / "run" / "error.json").exists()
    assert main(command) == 0


def test_a_table_of_scans_is_inspected_as_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = write_cohort(tmp_path / "cohort", 2, shape=(12, 16, 16))
    assert main(["data", "inspect", str(cohort / "cases.csv")]) == 0
    assert "layout csv" in capsys.readouterr().out
