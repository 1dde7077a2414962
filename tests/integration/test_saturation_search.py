"""``shortlist loadtest --find-saturation`` against bare servers."""

import itertools
import threading
import time
from pathlib import Path

import pytest

from tests.loadtesting import Load, answering


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
