"""What the results of ``shortlist loadtest`` say of what was asked for."""

from pathlib import Path

import pytest

from tests.loadtesting import Load, answering


def test_users_who_cannot_come_up_are_told_of(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users, page = tmp_path / "users.txt", tmp_path / "report.html"
    users.write_text("\n".join(map(str, range(30_000))))
    with answering(lambda _: b"") as address:
        options = ("--users", str(users), "--rate", "100", "--duration", "0.2", "--check", "0", "--html", str(page))
        _, figures = load(address, *options)
        said = "20,000 of 30,000 at most; every process draws its requests once and repeats them"
        assert f"distinct users: {said}\n" in capsys.readouterr().out
        assert figures["options"]["distinct users"] == said
        assert said in page.read_text()
        _, figures = load(address, *options, "--processes", "2")
    assert "distinct users" not in figures["options"]
    assert "distinct users" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "name", "said"),
    [
        (("--rate", "120.5", "--duration", "0.2"), "rate", "120.5/s"),
        (("--profile", "steps:50,100/0.1s"), "profile", "steps:50,100/0.1s"),
        (("--profile", "ramp:50-100/200ms"), "profile", "ramp:50-100/200ms"),
        (
            ("--find-saturation", "--first-rate", "50", "--duration", "0.2", "--most-p99", "0.001"),
            "search",
            "from 50/s on, for 0.2 s each",
        ),
        (("--concurrency", "3", "--duration", "0.2"), "in flight", "3"),
    ],
)
def test_the_load_that_was_asked_for_is_told(
    asked: tuple[str, ...], name: str, said: str, load: Load, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    with answering(lambda _: b"") as address:
        _, figures = load(address, *asked, "--check", "0", "--html", str(page))
    assert figures["options"][name] == said
    assert not {"rate", "profile", "search", "in flight"} & figures["options"].keys() - {name}
    assert f"<dt>{name}</dt><dd>{said}</dd>" in page.read_text()
