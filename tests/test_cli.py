"""The command: what it prints, and one clear line for what cannot be."""

from pathlib import Path

import pytest

from regrow.cli import main

RUN = ["run", "digits/vgg11", "--width", "0.1", "--limit", "64", "--batch-size", "32", "--epochs", "3"]


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that fails."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("regrow: ")
    return line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--setting", "sideways"], "unknown setting sideways"),
        (["--grow", "magic"], "unknown method for --grow: magic"),
        (["--prune", "magic"], "unknown method for --prune: magic"),
        (["--data", "nowhere"], "leave out --data"),
        (["--exchange", "2"], "more units than there are"),
        (["--events", "50", "--setting", "grow"], "--events 50 do not fit"),
        (["--batch-size", "65"], "--batch-size 65 is more than the 64 training images"),
        (["--out", "/proc/run"], "cannot write the run folder in /proc/run"),
        (["--out", "/dev/null"], "cannot write the run folder in /dev/null"),
    ],
)
def test_bad_input_is_one_line(
    change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of([*RUN, "--out", str(tmp_path / "run"), *change], capsys)
    assert not (tmp_path / "run").exists()


def test_unknown_task_and_missing_data_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown task digits/vgg12 (did you mean digits/vgg11?)" in error_of(["run", "digits/vgg12"], capsys)
    missing = ["run", "cifar10/vgg11", "--data", str(tmp_path / "nowhere")]
    assert "is not a folder" in error_of(missing, capsys)


def test_run_writes_its_folder_and_refuses_another_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert main([*RUN, "--out", str(out)]) == 0
    assert "another configuration (seed 0 there and 1 here)" in error_of(
        [*RUN, "--out", str(out), "--seed", "1"], capsys
    )


def test_compare_prints_one_table_and_writes_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *RUN[1:], "--out", str(tmp_path), "--events", "2"]) == 0
    printed = capsys.readouterr().out
    for text in ("static", "grow", "shrink", "constant", "parameters", "FLOPs", "train mode", "eval mode"):
        assert text in printed
    assert printed.strip().splitlines()[-1].startswith("report: ")
    assert (tmp_path / "report.html").stat().st_size > 0
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "second.html")]) == 0
    assert (tmp_path / "second.html").exists()


def test_compare_checks_all_runs_before_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *RUN[1:], "--out", str(tmp_path / "runs")]
    assert "leave out --setting" in error_of([*command, "--setting", "grow"], capsys)
    assert "must end smaller" in error_of([*command, "--end-fraction", "1"], capsys)
    assert not (tmp_path / "runs").exists()


def test_methods_lists_what_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert "random" in printed and "l1" in printed and "strength=" in printed


def test_report_on_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in error_of(["report", str(tmp_path)], capsys)


def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    capsys.readouterr()
    assert "/dev/null" in error_of(["report", str(out), "-o", "/dev/null/report.html"], capsys)


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("run", "compare", "report", "methods"))
