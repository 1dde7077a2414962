"""What ``shortlist loadtest`` leaves where a run or its reports end otherwise than they should."""

import itertools
import json
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.loadtest import processes
from shortlist_client.main import main
from tests.loadtesting import Load, answering
from tests.running import SHORTLIST


def told_when_under_way() -> tuple[threading.Event, Callable[[bytes], bytes]]:
    """What answers, and an event that is set once it has answered 30 calls."""
    under_way = threading.Event()
    turns = itertools.count()

    def answer(_: bytes) -> bytes:
        if next(turns) == 30:
            under_way.set()
        return b""

    return under_way, answer


def test_ctrl_c_prints_what_was_measured_so_far(small_models: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    under_way, answer = told_when_under_way()
    # A shell that runs tests in the background has them ignore Ctrl-C, and processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with answering(answer) as address:
            options = ("--server", address, "--models-dir", str(small_models), "--rate", "100", "--duration", "60")
            more = ("--warmup", "0", "--processes", "2", "--json", str(file))
            with subprocess.Popen(
                [*SHORTLIST, "loadtest", *options, *more], stdout=subprocess.PIPE, text=True
            ) as process:
                assert under_way.wait(30)
                process.send_signal(signal.SIGINT)
                output, _ = process.communicate(timeout=20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130
    assert output.startswith("stopped early; what was measured so far:")
    assert re.search(r"\n[1-9]\d* calls in \d\.\d s", output)
    figures = json.loads(file.read_text())
    assert figures["intervals"][-1]["to"] == pytest.approx(figures["seconds"])
    assert figures["rate"] * figures["seconds"] <= figures["requests"]


def test_sigterm_ends_every_process_without_a_traceback(small_models: Path) -> None:
    under_way, answer = told_when_under_way()
    with answering(answer) as address:
        options = ("--server", address, "--models-dir", str(small_models), "--rate", "100", "--duration", "60")
        with subprocess.Popen(
            [*SHORTLIST, "loadtest", *options, "--processes", "2"], stderr=subprocess.PIPE, text=True
        ) as process:
            assert under_way.wait(30)
            process.terminate()
            _, errors = process.communicate(timeout=20)  # until the last of them has closed it
    assert process.returncode == -signal.SIGTERM
    assert errors == ""


def test_a_server_that_hangs_during_the_run_leaves_the_report_of_what_it_did(load: Load) -> None:
    items = [recommender_pb2.ScoredItem(item_id=str(place), score=-place) for place in range(10)]
    right = recommender_pb2.RecommendResponse(items=items, model_version=1).SerializeToString()
    turns, let_go = itertools.count(), threading.Event()

    def hanging(_: bytes) -> bytes:
        if next(turns) >= 60:
            let_go.wait(120)
        return right

    with answering(hanging) as address:
        try:
            status, figures = load(address, "--rate", "50", "--duration", "3", "--check", "1", "--slo", "errors<1%")
        finally:
            let_go.set()
    assert status == 1
    assert figures["errors"]["DEADLINE_EXCEEDED"] > 0
    assert 0 < figures["ok"] <= figures["answers_checked"] <= 60  # those of the warm-up are not checked


def test_a_report_that_can_no_longer_be_written_does_not_lose_the_other(
    small_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, page = tmp_path / "folder" / "figures.json", tmp_path / "report.html"
    lost.parent.mkdir()

    def taking_it_away(_: bytes) -> bytes:
        if lost.parent.exists():
            lost.parent.rmdir()
        return b""

    with answering(taking_it_away, threads=1) as address:
        options = ["--models-dir", str(small_models), "--duration", "0.3", "--warmup", "0", "--check", "0"]
        status = main(["loadtest", "--server", address, *options, "--json", str(lost), "--html", str(page)])
    assert status == 1
    assert capsys.readouterr().err == f"shortlist: --json {lost} cannot be written: No such file or directory\n"
    assert page.read_text().startswith("<!doctype html>")


def test_figures_can_be_written_to_a_standard_output_that_is_a_pipe(small_models: Path) -> None:
    with answering(lambda _: b"") as address:
        options = ("--server", address, "--models-dir", str(small_models), "--duration", "0.3", "--check", "0")
        more = ("--warmup", "0", "--concurrency", "2", "--json", "/dev/stdout")
        command = [*SHORTLIST, "loadtest", *options, *more]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout[ended.stdout.index("\n{") :])["ok"] > 0


def test_a_run_without_calls_says_so(load: Load, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, figures = load(server, "--rate", "0.01", "--duration", "0.2", "--arrivals", "even")
    assert (status, figures["requests"]) == (1, 0)
    assert capsys.readouterr().err == "shortlist: no call was due in 0.2 s, so nothing was measured\n"


def test_a_rate_far_above_what_can_be_made_ends_with_figures(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """To count two million calls that were not made takes several seconds after the run."""
    monkeypatch.setattr(processes, "_PATIENCE_SECONDS", 4.0)
    with answering(lambda _: b"") as address:
        options = ("--rate", "1000000", "--duration", "2", "--warmup", "0", "--timeout", "0.5", "--check", "0")
        status, figures = load(address, *options)
    assert status == 0
    assert figures["requests"] == 2_000_000
    assert 0 < figures["ok"] < 500_000
    assert figures["generator"]["bottleneck"]
