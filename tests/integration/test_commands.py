"""The ``shortlist`` command: what it says when something is wrong, and that it works on anybody's CSV."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shortlist_client.main import main
from tests.running import SHORTLIST, server_process, serving, shortlist


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Purchases without ratings, and a file of products."""
    rows = [f"c{user},p{item}" for user in range(30) for item in range(20) if (user + item) % 3 == 0]
    (tmp_path / "bought.csv").write_text("customer,product\n" + "\n".join(rows) + "\n")
    products = [f'p{item},"Product {item}, large",{item * 1.5}' for item in range(20)]
    (tmp_path / "products.csv").write_text("product,title,price\n" + "\n".join(products) + "\n")
    return tmp_path


def test_a_shops_purchases_become_a_service(shop: Path) -> None:
    trained = shortlist(
        *("train", "--data", str(shop / "bought.csv"), "--columns", "user=customer,item=product"),
        *("--items", str(shop / "products.csv"), "--models-dir", str(shop / "models"), "--device", "cpu"),
        *("--set", "embedding_size=4", "--set", "epochs=3"),
    )
    assert trained.returncode == 0, trained.stderr
    assert "published version 1" in trained.stdout
    assert "epoch=3, loss=" in trained.stderr
    with server_process(shop / "models") as (_, address):
        answer = json.loads(shortlist("recommend", "c1", "-k", "3", "--server", address, "--json").stdout)
        assert len(answer["items"]) == 3
        assert answer["items"][0]["attributes"]["title"].endswith(", large")
        best = answer["items"][0]["id"]
        others = shortlist("recommend", "c1", "-k", "3", "--exclude", best, "--server", address, "--json").stdout
        assert best not in {item["id"] for item in json.loads(others)["items"]}
        again = shortlist("recommend", "c1", "-k", "20", "--include-seen", "--server", address, "--json").stdout
        assert len(json.loads(again)["items"]) == 20
        elsewhere = shortlist("recommend", "c1", "--model-version", "9", "--server", address)
        assert "there is no version 9" in elsewhere.stderr
        unknown = shortlist("recommend", "stranger", "--server", address)
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert unknown.stderr == "shortlist: the model knows no user 'stranger'\n"
        popular = shortlist("recommend", "stranger", "--fallback", "popular", "--server", address)
        assert popular.stdout.startswith("popular items for user stranger")


def test_without_refitting_what_was_held_out_is_neither_seen_nor_counted(shop: Path) -> None:
    trained = shortlist(
        *("train", "--data", str(shop / "bought.csv"), "--columns", "user=customer,item=product", "--no-refit"),
        *("--models-dir", str(shop / "models"), "--set", "embedding_size=4", "--set", "epochs=2", "--seed", "7"),
    )
    assert trained.returncode == 0, trained.stderr
    manifest = json.loads((shop / "models" / "1" / "manifest.json").read_text())
    assert manifest["training_data"]["interaction_count"] == manifest["evaluation"]["training_interactions"] == "160"
    assert "refit_on_all" not in manifest["evaluation"]  # false
    assert manifest["hyperparameters"]["seed"] == "7"


def test_interactions_for_validation_do_not_count_as_trained_on(shop: Path) -> None:
    trained = shortlist(
        *("train", "--data", str(shop / "bought.csv"), "--columns", "user=customer,item=product", "--no-refit"),
        *("--models-dir", str(shop / "models"), "--set", "embedding_size=4", "--set", "patience=2"),
    )
    assert trained.returncode == 0, trained.stderr
    assert "of these, 16 for validation" in trained.stderr
    manifest = json.loads((shop / "models" / "1" / "manifest.json").read_text())
    assert manifest["evaluation"]["training_interactions"] == "144"  # of 160
    assert manifest["training_data"]["interaction_count"] == "160"


def test_evaluate_prints_the_figures_and_writes_them(shop: Path) -> None:
    given = ["--data", str(shop / "bought.csv"), "--columns", "user=customer,item=product"]
    judged = shortlist(
        *("evaluate", *given, "--set", "embedding_size=4", "--set", "epochs=2"),
        *("--seeds", "1", "2", "--json", str(shop / "figures.json")),
    )
    assert judged.returncode == 0, judged.stderr
    report = json.loads((shop / "figures.json").read_text())
    assert [run["seed"] for run in report["runs"]] == [1, 2]
    figures = [run["result"]["metrics"]["recall@10"] for run in report["runs"]]
    assert report["mean"]["recall@10"] == pytest.approx(sum(figures) / 2)
    assert f"recall@10 {report['mean']['recall@10']:.4f}" in judged.stdout
    assert not (shop / "models").exists()
    for option, value in (("--protocol", "guess"), ("--split", "half"), ("--folds", "1")):
        wrong = shortlist("evaluate", *given, option, value)
        assert (wrong.returncode, "Traceback" in wrong.stderr) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/folder"], "neither a path nor one of the known data sets"),
        (["--data", "{data}", "--model", "oracle"], "there is no model 'oracle'; there are ials, softmax-mf"),
        (["--data", "{data}", "--format", "tape"], "there is no format 'tape'"),
        (["--data", "{data}", "--columns", "user=customer"], "--columns takes user=NAME,item=NAME"),
        (["--data", "{data}"], "has no column 'user', 'item'; its columns are customer, product"),
        (["--data", "{data}", "--columns", "user=customer,item=product", "--model", "mf"], "mf learns from ratings"),
        (["--data", "{data}", "--columns", "user=customer,item=product", "--set", "speed=9"], "no hyper-parameter"),
        (["--data", "{data}", "--columns", "user=customer,item=product", "--device", "abacus"], "'abacus' cannot be"),
        (["--data", "{data}", "--columns", "user=customer,item=product", "--device", "meta"], "must be cpu or cuda"),
        (
            [
                *("--data", "{data}", "--columns", "user=customer,item=product"),
                *("--set", "solver=cholesky", "--set", "regularization=1e-12"),
            ],
            "raise reg",
        ),
        (["--data", "{data}", "--columns", "user=customer,item=product", "--set", "regularization=inf"], "not inf"),
        (["--data", "{data}", "--columns", "user=customer,item=product", "--test-share", "2"], "test share must lie"),
        (["--data", "{data}", "--columns", "user=customer,item=product", "--models-dir", "/dev/null/m"], "/dev/null"),
    ],
)
def test_training_that_cannot_be_done_says_why_and_publishes_nothing(
    shop: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.replace("{data}", str(shop / "bought.csv")) for argument in arguments]
    models_dir = [] if "--models-dir" in given else ["--models-dir", str(shop / "models")]
    assert main(["train", *models_dir, *given]) == 1
    assert message in capsys.readouterr().err
    assert not (shop / "models").exists()


def test_ctrl_c_publishes_what_is_trained_and_resume_goes_on(shop: Path) -> None:
    models_dir = shop / "models"
    arguments = ["train", "--models-dir", str(models_dir), "--data", str(shop / "bought.csv"), "--model", "ials"]
    arguments += ["--columns", "user=customer,item=product", "--set", "embedding_size=4"]
    long = [*SHORTLIST, *arguments, "--set", "epochs=1000000"]
    with subprocess.Popen(long, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as training:
        checkpoint = models_dir / ".checkpoints" / "ials-split.safetensors"
        while not checkpoint.exists() and training.poll() is None:
            time.sleep(0.05)
        training.send_signal(signal.SIGINT)
        _, told = training.communicate(timeout=100)
    assert training.returncode == 0, told
    assert "--resume goes on from where it was stopped" in told
    assert (models_dir / "1" / "manifest.json").exists()
    other = shortlist(*arguments, "--set", "epochs=5", "--resume")
    assert other.returncode == 1
    assert "of a run with another hyper-parameters" in other.stderr
    assert "start again without --resume" in other.stderr
    finished = shortlist(*arguments, "--set", "epochs=5")
    assert finished.returncode == 0, finished.stderr
    assert not list(checkpoint.parent.iterdir())
    assert "no run to resume" in shortlist(*arguments, "--set", "epochs=2", "--resume").stderr


def test_what_tune_chose_trains(shop: Path) -> None:
    given = ["--data", str(shop / "bought.csv"), "--columns", "user=customer,item=product", "--set", "embedding_size=4"]
    chosen, study = str(shop / "chosen.json"), str(shop / "study.db")
    tuned = shortlist("tune", *given, "--trials", "3", "--out", chosen, "--study", study)
    assert tuned.returncode == 0, tuned.stderr
    assert "best of 3 trials: ndcg@20" in tuned.stdout
    settings = json.loads(Path(chosen).read_text())["settings"]
    trained = shortlist("train", "--models-dir", str(shop / "models"), *given, "--config", chosen)
    assert trained.returncode == 0, trained.stderr
    manifest = json.loads((shop / "models" / "1" / "manifest.json").read_text())
    for name, value in settings.items():
        assert manifest["hyperparameters"][name] == value
    wrong = shortlist("train", "--models-dir", str(shop / "models"), *given, "--config", chosen, "--model", "mf")
    assert wrong.returncode == 1
    assert "is a configuration of ials, not of mf" in wrong.stderr


def test_serving_on_a_taken_port_says_so(small_models: Path) -> None:
    with server_process(small_models) as (_, address):
        result = shortlist("serve", "--models-dir", str(small_models), "--port", address.rpartition(":")[2])
        assert result.returncode == 1
        assert f"cannot listen on {address}" in result.stderr


@pytest.mark.parametrize(
    "option", [["--port", "70000"], ["--working", "0"], ["--waiting", "-1"], ["--device", "abacus"]]
)
def test_serving_with_a_wrong_option_says_so(small_models: Path, option: list[str]) -> None:
    result = shortlist("serve", "--models-dir", str(small_models), *option)
    assert result.returncode == 1
    assert option[0][2:] in result.stderr
    assert "Traceback" not in result.stderr


def test_asking_for_what_no_message_can_carry_says_so(small_models: Path) -> None:
    with server_process(small_models) as (_, address):
        result = shortlist("recommend", "u0", "-k", "99999999999", "--server", address)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)


def test_the_options_of_asking(small_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What tests/small_world.py gives item number n: genres by n % 2, classic where n % 3 == 0, year 1990 + n."""

    def ask(*arguments: str, k: int = 200) -> dict[str, Any]:
        assert main([*arguments, "-k", str(k), "--server", app.address, "--json"]) == 0, capsys.readouterr().err
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    def ids(answer: dict[str, Any]) -> list[str]:
        return [item["id"] for item in answer["items"]]

    with serving(small_models) as app:
        everyone = ["recommend", "u3", "--include-seen"]
        some = ask(*everyone, "--must", "genres=Crime", "--must", "classic=true", "--must-not", "price=3")
        assert {int(item[1:]) for item in ids(some)} == set(range(0, 200, 6)) - {6}
        assert set(ids(ask(*everyone, "--must", "year=1995", "--must", "year=2017"))) == {"i5", "i27"}
        assert set(ids(ask("similar", "i5", "--must", "year=1995", "--must", "year=2017"))) == {"i27"}
        assert len(ids(ask("similar", "i5", "--must-not", "classic=false"))) == 67
        first = ask(*everyone, k=30)
        assert ids(ask(*everyone, "--offset", "10", k=20)) == ids(first)[10:]
        low = ask(*everyone, "--min-score", str(first["items"][4]["score"] - 1e-4), k=30)
        assert ids(low) == ids(first)[:5]
        assert len(ids(ask(*everyone, "--at-most", "3:genres"))) == 6
        folded = ask("recommend", "--history", "i9", "nothing", "i40")
        assert (folded["source"], folded["unknown_history_items"]) == ("folded_in", 1)
        assert len(ids(folded)) == 198
        assert main(["recommend", "--history", "i9", "x", "--server", app.address, "-k", "1", "--offset", "7"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "folded in items for a history of i9, x, from model version 1"
        assert lines[1] == "the model does not know 1 of them"
        assert lines[2].split()[0] == "8"
        for arguments, message in (
            (["--must", "taste=sweet"], "the model's items have no 'taste'"),
            (["--must", "year=old"], "'old' is no value of year, which holds int64"),
            (["--must", "classic=yes"], "'yes' is no value of classic, which holds bool"),
            (["--rerank"], "the model has no network to re-rank with"),
            (["--at-most", "0:genres"], "must be at least 1"),
        ):
            assert main(["recommend", "u3", *arguments, "--server", app.address]) == 1
            assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments USER --history is required"),
        (["u1", "--history", "i1"], "not allowed with argument USER"),
        (["u1", "--must", "genres"], "must be NAME=VALUE, such as genres=Comedy, not genres"),
        (["u1", "--at-most", "two:genres"], "must be N:NAME, such as 2:genres, not two:genres"),
    ],
)
def test_options_of_asking_that_cannot_be_read_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(["recommend", *arguments])
    assert message in capsys.readouterr().err


def test_asking_where_there_is_no_server_says_so() -> None:
    for arguments in (["recommend", "1"], ["similar", "1"], ["models", "list"]):
        result = shortlist(*arguments, "--server", "127.0.0.1:1", "--timeout", "0.5")
        assert result.returncode == 1
        assert "is `shortlist serve` running?" in result.stderr
    assert shortlist("health", "--server", "127.0.0.1:1").returncode == 1


def test_help_lists_every_command_without_loading_what_they_need() -> None:
    result = shortlist("--help")
    assert result.returncode == 0
    for command in ("demo", "data", "train", "serve", "health", "recommend", "similar", "models", "clusters"):
        assert f"    {command}" in result.stdout


_TELLS_THE_INTERVAL = """
import os, sys
from shortlist_server.app import ServerApp

def start(self, stop):
    print(sys.getswitchinterval(), flush=True)
    os._exit(0)

ServerApp.start = start
from shortlist_client.main import main
main(["serve", "--models-dir", sys.argv[1], "--port", "0"])
"""


def test_threads_of_a_server_wait_less_for_one_another_before_it_reads_a_version(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _TELLS_THE_INTERVAL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) == 0.0005
