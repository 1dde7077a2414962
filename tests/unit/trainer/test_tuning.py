"""Tuning: it searches, resumes, keeps away from the test part, and writes what can be run again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from shortlist_trainer.data.split import divide
from shortlist_trainer.errors import ConfigError, TrainerError
from shortlist_trainer.models import MODELS, Range
from shortlist_trainer.models.config import parse_settings, read_settings
from shortlist_trainer.tuning import TuningJob, tune
from tests.small_world import checkerboard

DATASET = checkerboard(60, 40)
QUICK = ("embedding_size=2", "epochs=3")


def job(tmp_path: Path, trials: int = 4, model: str = "mf") -> TuningJob:
    return TuningJob(model, tmp_path / "study.db", QUICK, trials=trials)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_searched(model: str) -> None:
    for name, space in MODELS[model].search_space.items():
        ends = (space.low, space.high) if isinstance(space, Range) else space.values
        whole = isinstance(space, Range) and space.whole
        for end in ends:
            # Some rules tie two hyper-parameters, as burn_in and epochs; the ends must be good by themselves.
            parse_settings(MODELS[model].config_type, [f"{name}={int(end) if whole else end}"])


def test_the_best_of_all_trials_is_chosen_and_can_be_run_again(tmp_path: Path) -> None:
    tuned = tune(job(tmp_path), DATASET)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/study.db")
    finished = [trial.value for trial in study.trials if trial.value is not None]
    assert tuned.trials == len(study.trials) == 4
    assert tuned.value == min(finished)
    assert tuned.metric == "rmse"
    tuned.write(tmp_path / "tuned.json")
    settings = read_settings(tmp_path / "tuned.json", "mf")
    config = parse_settings(MODELS["mf"].config_type, settings)
    assert (config.embedding_size, config.epochs) == (2, 3)
    assert repr(study.best_params["learning_rate"]) == tuned.settings["learning_rate"]


def test_the_defaults_are_the_first_trial(tmp_path: Path) -> None:
    tune(job(tmp_path, trials=1), DATASET)
    (first,) = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/study.db").trials
    default = MODELS["mf"].config_type()  # type: ignore[call-arg]  # mf's own has a default for every field
    assert first.params == {name: getattr(default, name) for name in ("learning_rate", "regularization", "dropout")}


def test_a_second_job_goes_on_with_the_study(tmp_path: Path) -> None:
    first = tune(job(tmp_path, trials=2), DATASET)
    second = tune(job(tmp_path, trials=2), DATASET)
    assert (first.trials, second.trials) == (2, 4)
    assert second.value <= first.value


def test_other_data_is_another_study(tmp_path: Path) -> None:
    tune(job(tmp_path, trials=1), DATASET)
    assert tune(job(tmp_path, trials=1), checkerboard(30, 40)).trials == 1


def test_the_test_part_is_never_looked_at(tmp_path: Path) -> None:
    interactions = DATASET.interactions
    in_test = np.isin(interactions.pair_codes(), divide(DATASET, "random", 0.2, 42).test.pair_codes())
    assert interactions.ratings is not None
    # The same data but for the ratings of the test part gives the same trials.
    spoilt = replace(
        DATASET,
        interactions=replace(interactions, ratings=np.where(in_test, 99, interactions.ratings).astype(np.float32)),
    )
    one = tune(job(tmp_path, trials=2), DATASET)
    other = tune(replace(job(tmp_path, trials=2), study=tmp_path / "other.db"), spoilt)
    assert one.value == other.value
    assert one.settings == other.settings


def test_a_search_without_a_finished_trial_says_so(tmp_path: Path) -> None:
    hopeless = replace(job(tmp_path, trials=1), settings=(*QUICK, "learning_rate=1e30", "initial_scale=1e30"))
    with pytest.raises(TrainerError, match="no trial was finished"):
        tune(hopeless, DATASET)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no configuration"),
        ("[]", "no configuration"),
        (json.dumps({"model": "ials", "settings": {}}), "of ials, not of mf; add --model ials"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"c\.json is .*{message}"):
        read_settings(tmp_path / "c.json", "mf")
