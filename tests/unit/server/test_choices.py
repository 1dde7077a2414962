"""What operators chose about a models folder: who may write it, and what is not written over or not written at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shortlist_server.errors import ChoicesUnusable
from shortlist_server.model.choices import Choices, ChoicesFile

_BY_ANOTHER_USER = """
import os
from pathlib import Path

from shortlist_server.errors import StoreNotWritable
from shortlist_server.model.choices import Choices, ChoicesFile

if os.geteuid() == 0:  # whom no permission stops
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    ChoicesFile(Path(".")).change(lambda _: Choices(labels={"stable": 1}))
except StoreNotWritable as error:
    print(error, end="")
"""


def changed_by_another_user(models_dir: Path) -> str:
    """What a change by somebody who owns none of the files was refused with; empty if it was made."""
    # From within the folder: folders above it may not be another user's to enter.
    command = [sys.executable, "-c", _BY_ANOTHER_USER]
    return subprocess.run(command, cwd=models_dir, capture_output=True, text=True, timeout=60, check=True).stdout


def read_only(file: Path) -> None:
    """Makes it, so that nobody but root can write it."""
    file.write_text("old")
    file.chmod(0o444)


@pytest.mark.parametrize("left", [".store.lock", ".store.json.new"])
def test_what_another_user_left_does_not_stop_a_change(tmp_path: Path, left: str) -> None:
    tmp_path.chmod(0o777)
    read_only(tmp_path / left)
    assert changed_by_another_user(tmp_path) == ""
    assert json.loads((tmp_path / "store.json").read_text())["labels"] == {"stable": 1}
    assert not (tmp_path / ".store.json.new").exists()


@pytest.mark.parametrize("existing", ["", ".store.lock"])
def test_a_folder_that_cannot_be_written_is_told_with_the_file(tmp_path: Path, existing: str) -> None:
    if existing:
        read_only(tmp_path / existing)
    tmp_path.chmod(0o555)
    file = ".store.json.new" if existing else ".store.lock"
    refused = changed_by_another_user(tmp_path)
    tmp_path.chmod(0o755)
    assert refused == f"the models folder cannot be written by this server: {file}: Permission denied"


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ("[]", "store.json is damaged: it must be an object of labels, loaded and unloaded"),
        (" " * (1 << 20) + "{}", "store.json cannot be read: it has more than 1,048,576 bytes"),
        ("pipe", "store.json cannot be read: it is no file"),
        ("link", "store.json cannot be read: No such file or directory"),
    ],
)
def test_choices_that_cannot_be_read_are_refused_as_such_and_not_as_a_folder_that_cannot_be_written(
    tmp_path: Path, spoilt: str, words: str
) -> None:
    file = tmp_path / "store.json"
    if spoilt == "pipe":
        os.mkfifo(file)
    elif spoilt == "link":
        file.symlink_to("nowhere")
    else:
        file.write_text(spoilt)
    with pytest.raises(ChoicesUnusable) as refused:
        ChoicesFile(tmp_path).change(lambda old: old)
    assert str(refused.value) == words
    assert not file.is_file() or file.read_text() == spoilt


def test_a_change_that_would_make_the_file_too_large_to_be_read_is_refused_and_others_are_made(tmp_path: Path) -> None:
    file = ChoicesFile(tmp_path)
    many = {f"{number:063}": 1 for number in range(14_000)}
    file.change(lambda _: Choices(many))
    more = many | {f"x{number:062}": 1 for number in range(1_000)}
    with pytest.raises(ChoicesUnusable, match=r"^store\.json would have more than 1,048,576 bytes: take some of its "):
        file.change(lambda _: Choices(more))
    assert file.read().labels == many
    file.change(lambda _: Choices({"stable": 2}))
    assert file.read().labels == {"stable": 2}
