"""``shortlist loadtest`` against real servers: what it counts, what it notices, and what it exits with."""

import itertools
import json
import multiprocessing
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from shortlist.v1 import recommender_pb2
from shortlist_client.channel import channel_options
from shortlist_client.loadtest.calls import CoreCalls, PlainCalls
from shortlist_client.loadtest.connection import Target, open_channel
from shortlist_client.loadtest.generator import Run, Setup, generate
from shortlist_client.loadtest.schedule import constant
from shortlist_client.loadtest.workload import Kind, Workload
from shortlist_client.main import main
from shortlist_server.retrieval.item_index import ItemIndex
from tests.running import SHORTLIST, serving

SERVICE = "shortlist.v1.RecommenderService"
RECOMMEND = f"/{SERVICE}/Recommend"
_LISTENS = "0A"


@pytest.fixture(scope="module")
def server(small_models: Path) -> Iterator[str]:
    """The address of a server of ``small_models``: what is asked is the same for either lane."""
    with serving(small_models) as app:
        yield app.address


@contextmanager
def answering(answer: Callable[[bytes], bytes], threads: int = 16, port: int = 0) -> Iterator[str]:
    """A bare server of Recommend that answers as told."""
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda request, _: answer(request)
    )
    server = grpc.server(futures.ThreadPoolExecutor(threads))
    server.add_registered_method_handlers(SERVICE, {"Recommend": handler})
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture
def load(small_models: Path, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the command; gives its exit status and figures."""

    def run(address: str, *options: str) -> tuple[int, dict[str, Any]]:
        file = tmp_path / "figures.json"
        fixed = ("--models-dir", str(small_models), "--json", str(file), "--warmup", "0.2")
        status = main(["loadtest", "--server", address, *fixed, *options])
        return status, json.loads(file.read_text())

    return run


Load = Callable[..., tuple[int, dict[str, Any]]]


def test_a_closed_loop_of_every_kind_of_call_adds_up(
    load: Load, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    status, figures = load(
        *(server, "--mix", "unary=4,batch=1,similar=2,stream=2", "--batch-size", "5", "--concurrency", "6"),
        *("--duration", "1", "--processes", "2", "--html", str(page), "--check", "1"),
        *("--slo", "errors<0.1%,rate>20,batch.p99<5s"),
    )
    assert status == 0
    assert figures["loop"] == "closed"
    assert set(figures["kinds"]) == {"unary", "batch", "similar", "stream"}
    assert figures["errors"] == {}
    requests = figures["requests"]
    assert requests == figures["ok"] == sum(kind["requests"] for kind in figures["kinds"].values())
    assert requests == sum(interval["due"] for interval in figures["intervals"])
    assert requests == figures["latency_ms"]["count"] == sum(bucket["count"] for bucket in figures["histogram"])
    answered = sum(interval["answered"] for interval in figures["intervals"])
    assert figures["rate"] == pytest.approx(answered / figures["seconds"])
    assert figures["answers_checked"] >= requests
    assert figures["generator"]["processes"] == 2
    assert figures["generator"]["way"] == "gRPC core"
    assert 0 < figures["generator"]["cpu_micros_per_call"] < 1e5
    assert all(one["met"] for one in figures["objectives"])
    assert "met     errors<0.1%" in capsys.readouterr().out
    html = page.read_text()
    assert html.count("<svg") == 3
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)


def test_an_open_loop_offers_what_it_was_told_and_a_missed_objective_ends_with_1(load: Load, server: str) -> None:
    status, figures = load(server, "--profile", "steps:40,160/1s", "--arrivals", "even", "--slo", "p99<1us,errors<1%")
    assert status == 1
    assert figures["requests"] == pytest.approx(200, abs=2)
    assert figures["generator"]["send_lag_ms"]["count"] == figures["requests"]
    assert [round(step["offered_rate"]) for step in figures["steps"]] == [40, 160]
    assert [one["met"] for one in figures["objectives"]] == [False, True]


def test_short_steps_are_told_apart_as_well(load: Load, server: str) -> None:
    _, figures = load(server, "--profile", "steps:50,100,200/0.3s", "--arrivals", "even")
    assert [step["asked_rate"] for step in figures["steps"]] == [50, 100, 200]
    assert [round(step["offered_rate"] * 0.3) for step in figures["steps"]] == [15, 30, 60]


def test_who_was_due_while_the_server_stood_still_is_counted(
    load: Load, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ItemIndex.search
    latencies = {}
    for name, option in (("open", ("--rate", "200")), ("closed", ("--concurrency", "1"))):
        turns = itertools.count()

        def standing_still(*arguments: Any, turns: Iterator[int] = turns, **named: Any) -> Any:
            if next(turns) == 80:
                time.sleep(0.5)
            return search(*arguments, **named)

        monkeypatch.setattr(ItemIndex, "search", standing_still)
        _, figures = load(server, *option, "--duration", "1.2")
        latencies[name] = figures["latency_ms"]
    assert latencies["open"]["max"] >= 490
    # 100 of 240 calls were due meanwhile and waited 250 ms on average; of a closed loop only one was under way.
    assert latencies["open"]["p90"] > 200
    assert latencies["closed"]["p90"] < 100


def test_what_a_late_generator_sends_late_counts_from_when_it_was_due(server: str) -> None:
    workload = Workload({Kind.UNARY: 1.0}, ("u1", "u2"))
    setup = Setup(Target(server), workload, (0, 1), 1, 5.0, 1_000, check_share=0.0, seed=0)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=generate, args=(setup, theirs), daemon=True)
    process.start()
    assert ours.recv() == ("ready", "gRPC core")
    start = time.perf_counter() - 0.5  # as if it had stood still since
    ours.send(
        Run(constant(100.0, 0.6), 0, poisson=False, warmup_seconds=0.0, seconds=0.6, step_seconds=0.6, start=start)
    )
    while (said := ours.recv())[0] != "counted":
        pass
    ours.send(None)
    process.join(10)
    tally = said[1].tally
    assert tally.requests == 60
    assert tally.lags.maximum == pytest.approx(0.5, abs=0.1)
    assert tally.latencies().percentile(100) > 0.45
    assert tally.latencies().percentile(50) > 0.15


def test_answers_that_come_after_a_stop_do_not_count_as_given_before_it() -> None:
    def slow(_: bytes) -> bytes:
        time.sleep(0.5)
        return b""

    with answering(slow, threads=64) as address:
        workload = Workload({Kind.UNARY: 1.0}, ("u1", "u2"))
        setup = Setup(Target(address), workload, (0, 1), 1, 5.0, 1_000, check_share=0.0, seed=0)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=generate, args=(setup, theirs), daemon=True)
        process.start()
        assert ours.recv()[0] == "ready"
        start = time.perf_counter() + 0.1
        ours.send(
            Run(constant(50.0, 60), 0, poisson=False, warmup_seconds=0.0, seconds=60, step_seconds=0.25, start=start)
        )
        time.sleep(0.5)
        ours.send(start + 1.0)
        while (said := ours.recv())[0] != "counted":
            pass
        ours.send(None)
        process.join(10)
    tally = said[1].tally
    assert said[1].seconds == tally.seconds == pytest.approx(1.0)
    assert tally.requests == tally.latencies().count == 50
    assert 0 < tally.answered <= 25  # what was due in the first half


def connections_to(port: int) -> set[str]:
    """The far ends of connections that a port of this machine has, or has had within the last minute."""
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table]
    return {line[2] for line in lines if int(line[1].split(":")[1], 16) == port and line[3] != _LISTENS}


@pytest.mark.parametrize(("connections", "processes", "opened"), [(("--connections", "7"), "3", 7), ((), "3", 4)])
def test_as_many_connections_are_opened_as_were_asked_for(
    load: Load, small_models: Path, connections: tuple[str, ...], processes: str, opened: int
) -> None:
    with serving(small_models) as app:
        seen: set[str] = set()
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.01):
                seen.update(connections_to(app.port))

        looking = threading.Thread(target=look)
        looking.start()
        status, figures = load(app.address, *connections, "--processes", processes, "--duration", "0.3")
        over.set()
        looking.join()
    assert status == 0
    assert figures["options"]["connections"] == str(opened)
    assert len(seen) == opened


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


def test_figures_can_be_written_to_a_standard_output_that_is_a_pipe(small_models: Path) -> None:
    with answering(lambda _: b"") as address:
        options = ("--server", address, "--models-dir", str(small_models), "--duration", "0.3", "--check", "0")
        more = ("--warmup", "0", "--concurrency", "2", "--json", "/dev/stdout")
        command = [*SHORTLIST, "loadtest", *options, *more]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout[ended.stdout.index("\n{") :])["ok"] > 0


def test_reports_that_would_overwrite_one_another_are_refused_before_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    reports = ["--json", "report", "--html", str(tmp_path / "report")]
    assert main(["loadtest", "--server", "127.0.0.1:1", *reports]) == 2
    assert capsys.readouterr().err == (
        f"shortlist: --json and --html both name {tmp_path / 'report'}: one would overwrite the other\n"
    )


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


def test_a_run_without_calls_says_so(load: Load, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, figures = load(server, "--rate", "0.01", "--duration", "0.2", "--arrivals", "even")
    assert (status, figures["requests"]) == (1, 0)
    assert capsys.readouterr().err == "shortlist: no call was due in 0.2 s, so nothing was measured\n"


def test_wrong_answers_are_errors(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    items = [recommender_pb2.ScoredItem(item_id="same", score=1.0)] * 10
    wrong = recommender_pb2.RecommendResponse(items=items).SerializeToString()
    with answering(lambda _: wrong) as address:
        status, figures = load(address, "--duration", "0.5", "--concurrency", "2", "--check", "1", "--slo", "errors<1%")
    assert status == 1
    assert figures["errors"] == {"WRONG_ANSWER": figures["requests"]}
    captured = capsys.readouterr()
    assert "an item comes twice" in captured.out
    assert captured.err == f"shortlist: none of {figures['requests']:,} calls was answered rightly\n"


def test_answers_that_change_from_call_to_call_are_noticed(load: Load) -> None:
    turn = itertools.count()

    def changing(_: bytes) -> bytes:
        first = next(turn) % 7 * 10
        items = [recommender_pb2.ScoredItem(item_id=str(first + place), score=-first - place) for place in range(10)]
        return recommender_pb2.RecommendResponse(items=items, model_version=1).SerializeToString()

    with answering(changing) as address:
        _, figures = load(address, "--duration", "0.5", "--concurrency", "2", "--check", "1")
    assert figures["errors"]["WRONG_ANSWER"] > figures["requests"] / 2
    assert "with other items than before" in figures["error_examples"][0]
    assert figures["requests"] == figures["ok"] + figures["errors"]["WRONG_ANSWER"]


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
    assert 0 < figures["ok"] <= figures["answers_checked"] <= 60  # those of the warm-up are checked as well


def test_unknown_users_and_late_answers_are_counted_by_status(load: Load, server: str, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("u1\nnobody\n")
    options = ("--users", str(users), "--zipf", "0", "--duration", "0.5", "--concurrency", "2")
    status, figures = load(server, *options, "--mix", "unary=1,stream=1,batch=1", "--batch-size", "2")
    assert status == 0
    assert set(figures["errors"]) == {"NOT_FOUND"}
    assert all(kind["errors"]["NOT_FOUND"] > 0 for kind in figures["kinds"].values())
    assert all(kind["ok"] > 0 for kind in figures["kinds"].values())
    assert "NOT_FOUND: the model knows no user 'nobody'" in figures["error_examples"]

    def slow(_: bytes) -> bytes:
        time.sleep(0.3)
        return b""

    with answering(slow) as address:
        status, figures = load(address, *options, "--timeout", "0.1")
    assert status == 1  # nothing was answered
    assert set(figures["errors"]) == {"DEADLINE_EXCEEDED"}
    assert figures["latency_ms"]["p50"] >= 95


def test_calls_beyond_the_limit_of_what_may_wait_are_failures(load: Load) -> None:
    def slow(_: bytes) -> bytes:
        time.sleep(0.4)
        return b""

    with answering(slow) as address:
        options = ("--rate", "100", "--duration", "0.5", "--max-in-flight", "5", "--check", "0")
        _, figures = load(address, *options)
    assert figures["errors"]["NOT_SENT"] > 10
    assert figures["ok"] > 0


def test_saturation_is_found_by_itself(load: Load, tmp_path: Path) -> None:
    """One thread that takes 10 ms an answer gives 100 answers a second at most."""

    def slow(_: bytes) -> bytes:
        time.sleep(0.01)
        return b""

    page = tmp_path / "report.html"
    with answering(slow, threads=1) as address:
        options = ("--find-saturation", "--first-rate", "70", "--duration", "0.4", "--arrivals", "even", "--check", "0")
        status, figures = load(address, *options, "--timeout", "0.3", "--html", str(page))
    assert status == 0
    assert 50 < figures["saturation"]["rate"] < 105
    assert {trial["sustained"] for trial in figures["saturation"]["trials"]} == {True, False}
    assert page.read_text().count("<svg") == 5


def test_a_search_that_finds_no_rate_that_is_sustained_ends_with_1(load: Load) -> None:
    def slow(_: bytes) -> bytes:
        time.sleep(0.1)
        return b""

    with answering(slow) as address:
        options = ("--find-saturation", "--most-p99", "50", "--first-rate", "40", "--duration", "0.5")
        status, figures = load(address, *options, "--arrivals", "even", "--check", "0")
    assert status == 1
    assert figures["ok"]
    assert figures["saturation"]["rate"] == 0


def test_a_server_that_goes_away_during_the_search_is_said(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns, let_go, page = itertools.count(), threading.Event(), tmp_path / "report.html"

    def hanging(_: bytes) -> bytes:
        if next(turns) >= 100:  # 100 and 200 calls/s take 90, with those of the warm-ups
            let_go.wait(120)
        return b""

    with answering(hanging) as address:
        options = ("--find-saturation", "--first-rate", "100", "--duration", "0.2", "--arrivals", "even")
        more = ("--most-p99", "250", "--check", "0", "--timeout", "0.3", "--warmup", "0.1", "--html", str(page))
        try:
            status, figures = load(address, *options, *more)
        finally:
            let_go.set()
    assert status == 1
    assert figures["saturation"]["server_went_away"]
    *before, last, low = figures["saturation"]["trials"]
    assert (last["rate"], low["rate"]) == (0, 0)
    sustained = sorted({trial["asked_rate"] for trial in before if trial["sustained"]})
    assert low["asked_rate"] == sustained[-1] < last["asked_rate"]
    said = (
        f"he server went away during the search: no right answer came at {last['asked_rate']:,.0f}/s, "
        f"nor any longer at {low['asked_rate']:,.0f}/s; "
        f"it had sustained {', '.join(f'{rate:,.0f}/s' for rate in sustained)}"
    )
    captured = capsys.readouterr()
    assert captured.err == f"shortlist: t{said}\n"
    assert f"t{said}\nbefore that, at {low['asked_rate']:,.0f}/s:\n" in captured.out
    assert "highest sustained rate" not in captured.out
    assert f'<p class="warning">T{said}.</p>' in page.read_text()
    assert "highest sustained rate" not in page.read_text()


def _of_the_load_test(address: str) -> grpc.Channel:
    return open_channel(Target(address))


def _of_the_client(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, channel_options())


@pytest.mark.parametrize("channel_to", [_of_the_load_test, _of_the_client])
def test_a_server_that_comes_back_is_reached_within_a_second_or_so(channel_to: Callable[[str], grpc.Channel]) -> None:
    with answering(lambda _: b"") as address:
        pass  # it has gone
    with channel_to(address) as channel:
        ready = grpc.channel_ready_future(channel)
        time.sleep(6)  # by when gRPC, left to itself, would wait for seconds
        with answering(lambda _: b"", port=int(address.rpartition(":")[2])):
            ready.result(2)


def test_the_core_and_the_public_interface_give_the_same(server: str) -> None:
    target = Target(server, metadata=(("x-request-id", "mine"),))
    request = recommender_pb2.RecommendRequest(user_id="u1", k=3).SerializeToString()
    unknown = recommender_pb2.RecommendRequest(user_id="nobody").SerializeToString()
    seen = []
    for way in (CoreCalls, PlainCalls):
        calls = way(open_channel(target), target, 5.0, [RECOMMEND])
        answers = []
        for message in (request, unknown):
            done: futures.Future[tuple[str, bytes, str]] = futures.Future()
            calls.start(RECOMMEND, message, lambda *what, done=done: done.set_result(what))
            status, answer, details = done.result(10)
            items = recommender_pb2.RecommendResponse.FromString(answer).items
            answers.append((status, [item.item_id for item in items], details))
        calls.close()
        seen.append(answers)
    assert seen[0] == seen[1]
    assert [(status, len(items)) for status, items, _ in seen[0]] == [("OK", 3), ("NOT_FOUND", 0)]


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
