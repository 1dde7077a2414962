"""The training loop: resuming, stopping early, stopping by the user, and what it refuses."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortlist_trainer.errors import ConfigError, TrainerError
from shortlist_trainer.models import MODELS, Checkpoint, TrainingRun, Validation, configure, fit
from shortlist_trainer.models.base import Model
from shortlist_trainer.models.config import GradientConfig, ModelConfig
from shortlist_trainer.models.mf import MatrixFactorization, MatrixFactorizationConfig
from shortlist_trainer.progress import Bar, stopping_on_interrupt
from tests.small_world import checkerboard, training_run

INTERACTIONS = checkerboard().interactions
CONFIG = MatrixFactorizationConfig(embedding_size=4, epochs=6, batch_size=100, dropout=0.2)


def assert_same_state(one: Model[ModelConfig], other: Model[ModelConfig]) -> None:
    expected = other.state()
    assert one.state().keys() == expected.keys()
    for name, tensor in one.state().items():
        np.testing.assert_array_equal(tensor.detach().numpy(), expected[name].detach().numpy(), err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_run_ends_bit_for_bit_as_an_unbroken_one(name: str, tmp_path: Path) -> None:
    settings = {"embedding_size": "4", "epochs": "4"} | ({"burn_in": "1"} if name == "svdpp" else {})
    config = configure(MODELS[name].config_type, settings)
    run = training_run()
    unbroken = fit(MODELS[name], config, INTERACTIONS, run)
    path = tmp_path / "new" / "checkpoint.safetensors"
    fit(MODELS[name], config, INTERACTIONS, replace(run, checkpoint=Checkpoint(path), last_epoch=2))
    resumed = fit(MODELS[name], config, INTERACTIONS, replace(run, checkpoint=Checkpoint(path, resume=True)))
    assert_same_state(unbroken.model, resumed.model)
    assert [record.loss for record in resumed.history.epochs] == [record.loss for record in unbroken.history.epochs]


def scripted(values: list[float], *, higher_is_better: bool) -> Validation:
    """A validation that finds these values, epoch by epoch."""
    left = iter(values)
    return Validation("scripted", higher_is_better, lambda model: next(left))


@pytest.mark.parametrize(
    ("values", "higher_is_better"),
    [([1, 2, 5, 4, 3, 9], True), ([9, 8, 5, 6, 7, 1], False), ([1, 2, 5, 5, 5, 9], True)],
)
def test_training_stops_after_patience_epochs_and_keeps_the_best(
    values: list[float], *, higher_is_better: bool
) -> None:
    run = replace(training_run(), validation=scripted(values, higher_is_better=higher_is_better))
    fitted = fit(MatrixFactorization, replace(CONFIG, patience=2), INTERACTIONS, run)
    assert [record.metric for record in fitted.history.epochs] == values[:5]
    assert fitted.history.best_epoch == 3
    to_the_best = fit(MatrixFactorization, replace(CONFIG, patience=2), INTERACTIONS, training_run_to(3))
    assert_same_state(fitted.model, to_the_best.model)


def training_run_to(epoch: int) -> TrainingRun:
    return replace(training_run(), last_epoch=epoch)


def test_a_resumed_run_still_knows_its_best_epoch(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    run = replace(training_run(), checkpoint=checkpoint, validation=scripted([3, 9, 4], higher_is_better=True))
    fit(MatrixFactorization, CONFIG, INTERACTIONS, replace(run, last_epoch=3))
    again = replace(
        run, checkpoint=replace(checkpoint, resume=True), validation=scripted([5, 6, 7], higher_is_better=True)
    )
    resumed = fit(MatrixFactorization, CONFIG, INTERACTIONS, again)
    assert resumed.history.best_epoch == 2
    best = fit(MatrixFactorization, CONFIG, INTERACTIONS, training_run_to(2))
    assert_same_state(resumed.model, best.model)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"learning_rate": 0.5}, "hyper-parameters"), ({"seed": 1}, "seed"), ({"data": True}, "training data")],
)
def test_a_checkpoint_of_another_run_is_refused(change: dict[str, float], named: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    fit(MatrixFactorization, CONFIG, INTERACTIONS, replace(training_run(), checkpoint=checkpoint))
    run = replace(training_run(int(change.get("seed", 0))), checkpoint=replace(checkpoint, resume=True))
    config = replace(CONFIG, learning_rate=change.get("learning_rate", CONFIG.learning_rate))
    interactions = INTERACTIONS
    if "data" in change:
        interactions = INTERACTIONS.select(np.arange(len(INTERACTIONS)) > 0)
    with pytest.raises(ConfigError, match=f"another {named}"):
        fit(MatrixFactorization, config, interactions, run)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"not a checkpoint")
    run = replace(training_run(), checkpoint=Checkpoint(path, resume=True))
    with pytest.raises(ConfigError, match=r"c\.safetensors cannot be read.*without --resume"):
        fit(MatrixFactorization, CONFIG, INTERACTIONS, run)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """As at a terminal: what a shell runs in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Interrupted(MatrixFactorization):
    """Presses Ctrl-C in the middle of an epoch."""

    in_epoch = 3

    def train_epoch(self, epoch: int, bar: Bar) -> float:
        if epoch == self.in_epoch:
            signal.raise_signal(signal.SIGINT)
        return super().train_epoch(epoch, bar)


def test_ctrl_c_keeps_what_is_trained_and_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    with stopping_on_interrupt("stopping"):
        fitted = fit(_Interrupted, CONFIG, INTERACTIONS, replace(training_run(), checkpoint=checkpoint))
    assert fitted.stopped
    assert len(fitted.history.epochs) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = replace(training_run(), checkpoint=replace(checkpoint, resume=True))
    whole = fit(MatrixFactorization, CONFIG, INTERACTIONS, resumed)
    assert not whole.stopped
    unbroken = fit(MatrixFactorization, CONFIG, INTERACTIONS, training_run())
    assert_same_state(whole.model, unbroken.model)


def test_ctrl_c_with_validation_keeps_the_best_so_far() -> None:
    run = replace(training_run(), validation=scripted([5, 4, 3], higher_is_better=True))
    with stopping_on_interrupt("stopping"):
        fitted = fit(_Interrupted, CONFIG, INTERACTIONS, run)
    assert fitted.history.best_epoch == 1
    best = fit(MatrixFactorization, CONFIG, INTERACTIONS, training_run_to(1))
    assert_same_state(fitted.model, best.model)


def test_a_second_ctrl_c_ends_the_program() -> None:
    with stopping_on_interrupt("stopping"):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_the_first_epoch_is_done_leaves_nothing_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Interrupted, "in_epoch", 1)
    with stopping_on_interrupt("stopping"), pytest.raises(TrainerError, match="nothing to keep"):
        fit(_Interrupted, CONFIG, INTERACTIONS, training_run())


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("step", [1, 1, 0.5, 0.5, 0.25]),
        ("cosine", [1, 0.8535534, 0.5, 0.1464466, 0]),
    ],
)
def test_learning_rates_follow_their_schedule(schedule: str, rates: list[float]) -> None:
    values = {"learning_rate": "1", "epochs": "4", "schedule": schedule, "step_epochs": "2", "step_factor": "0.5"}
    config = configure(MatrixFactorizationConfig, values)
    assert isinstance(config, GradientConfig)
    assert [config.learning_rate_at(epoch) for epoch in range(5)] == pytest.approx(rates)


def test_weight_decay_and_dropout_change_what_is_learnt() -> None:
    plain, decayed, dropped = (
        fit(MatrixFactorization, config, INTERACTIONS, training_run()).model.embeddings().users
        for config in (
            replace(CONFIG, dropout=0.0),
            replace(CONFIG, dropout=0.0, weight_decay=20.0),
            replace(CONFIG, dropout=0.5),
        )
    )
    assert np.square(decayed).sum() < np.square(plain).sum()
    assert not np.allclose(dropped, plain)
