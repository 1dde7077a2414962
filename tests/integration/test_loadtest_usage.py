"""What ``shortlist loadtest`` refuses before the load, and says why."""

import re
import socket
from pathlib import Path

import pytest

from shortlist_client.main import main


def test_fewer_connections_than_processes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "--server", "127.0.0.1:1", "--connections", "2", "--processes", "3"]) == 2
    assert capsys.readouterr().err == (
        "shortlist: --connections 2 is fewer than --processes 3: each process needs one of its own\n"
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--find-saturation", "--first-rate", "1"], "--first-rate 1 makes 5 calls in 5 s: fewer than 10 show nothing"),
        (
            ["--mix", "unary=1,similar=1", "--slo", "p99<1s,batch.p99<1s"],
            "--slo batch.p99<1s: --mix has no batch calls",
        ),
    ],
)
def test_what_could_show_nothing_is_refused_before_the_load(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadtest", "--server", "127.0.0.1:1", *options]) == 2
    assert capsys.readouterr().err == f"shortlist: {why}\n"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--models-dir", "nowhere"], "there is no model in nowhere to draw users from"),
        (["--users", "nowhere"], "nowhere: "),
        (["--users-from-model", "nowhere"], r"nowhere/user_ids\.safetensors: "),
    ],
)
def test_what_cannot_be_begun_says_why(options: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", *options]) == 1
    assert re.match(f"shortlist: {why}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "wanted", "files"),
    [
        (["--mix", "similar"], "users and items", "--users, --items"),
        (["--mix", "similar", "--users", "users.txt"], "items", "--items"),
        (["--mix", "similar", "--items", "users.txt"], "users", "--users"),
    ],
)
def test_where_there_is_no_model_what_it_is_needed_for_is_said(
    options: list[str],
    wanted: str,
    files: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("users.txt").write_text("u1\n")
    assert main(["loadtest", "--models-dir", "nowhere", *options]) == 1
    folder = ", a version's folder (--users-from-model)" if "users" in wanted else ""
    assert capsys.readouterr().err == (
        f"shortlist: there is no model in nowhere to draw {wanted} from: "
        f"name a file of ids ({files}){folder} or the models folder (--models-dir)\n"
    )


def test_no_server_is_said(small_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["loadtest", "--server", "127.0.0.1:1", "--models-dir", str(small_models), "--timeout", "0.2"])
    assert status == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"shortlist: 127\.0\.0\.1:1 does not answer: .*Connection refused.*\n", said)


@pytest.mark.parametrize(
    "options",
    [
        ["--slo", "p99<20"],
        ["--mix", "x=1"],
        ["--profile", "x"],
        ["--rate", "0"],
        ["--rate", "1000001"],
        ["--first-rate", "1000001"],
        ["--profile", "ramp:1-1000001/1s"],
        ["--profile", "steps:1,1000001,2/1s"],
        ["--rate", "5", "--profile", "x"],
        ["--batch-size", "1001"],
        ["-k", "1001"],
        ["--zipf", "20.5"],
    ],
)
def test_wrong_usage_ends_with_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["loadtest", *options])
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_refused_before_the_load(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    circle, link = tmp_path / "circle", tmp_path / "link"
    circle.symlink_to(circle)
    link.symlink_to(tmp_path / "target")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    for file, why in (
        (tmp_path / "missing" / "x", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "socket", "No such device or address"),
        (circle, f"Symlink loop from {str(circle)!r}"),
    ):
        others = ["--json", str(report), "--html", str(link)]
        assert main(["loadtest", "--server", "127.0.0.1:1", *others, option, str(file)]) == 2
        assert capsys.readouterr().err == f"shortlist: {option} {file} cannot be written: {why}\n"
    assert not report.exists()
    assert link.is_symlink()
    assert not (tmp_path / "target").exists()


def test_reports_that_would_overwrite_one_another_are_refused_before_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    reports = ["--json", "report", "--html", str(tmp_path / "report")]
    assert main(["loadtest", "--server", "127.0.0.1:1", *reports]) == 2
    assert capsys.readouterr().err == (
        f"shortlist: --json and --html both name {tmp_path / 'report'}: one would overwrite the other\n"
    )
