"""Choosing hyper-parameters by a holdout cut from the training data; the test part is never looked at."""

import io
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from shortlist_trainer.data.dataset import Dataset
from shortlist_trainer.data.split import Split, divide, validation_holdout
from shortlist_trainer.errors import ConfigError, Diverged, StoppedEarly, TrainerError
from shortlist_trainer.evaluation.protocols import HEADLINES, PROTOCOLS, headline
from shortlist_trainer.models import MODELS, Model, Range, TrainingRun, Validation, configure, fit, parse_settings
from shortlist_trainer.models.base import Recommender
from shortlist_trainer.pipeline import choose_device, default_split
from shortlist_trainer.progress import Progress, stopping_on_interrupt

_MEASURED_TIMES = 20
"""How often, at most, a trial is measured and held against the median of the others at the same epoch."""


@dataclass(frozen=True)
class TuningJob:
    """What to tune, and how long.

    Attributes:
        model: one of ``MODELS``.
        study: SQLite file of all trials; another job on the same data and protocol goes on with it.
        settings: hyper-parameters as NAME=VALUE that are not to be changed.
        protocol: one of ``PROTOCOLS``; None for the one that suits the model.
        split: one of ``SPLITS``; None for the data's own, or the one that suits the protocol.
        test_share: the share of interactions that the split sets aside, where it leaves that open.
        trials: how many to run in this job.
        minutes: begin no trial after so many; None for no limit.
        device: "auto" for a GPU where there is one, or a torch device.
        mixed_precision: networks may compute in bfloat16; None to do so on a GPU.
        seed: of the split, the holdout, the training and the order of the search.
    """

    model: str
    study: Path
    settings: Sequence[str] = ()
    protocol: str | None = None
    split: str | None = None
    test_share: float = 0.2
    trials: int = 30
    minutes: float | None = None
    device: str = "auto"
    mixed_precision: bool | None = None
    seed: int = 42


@dataclass(frozen=True)
class Tuned:
    """The best of a study.

    Attributes:
        model: one of ``MODELS``.
        protocol: by which it was judged.
        metric: the name of what it was chosen by.
        value: its value on the holdout.
        trials: how many ended, those cut short included.
        settings: hyper-parameter to value, as texts.
    """

    model: str
    protocol: str
    metric: str
    value: float
    trials: int
    settings: Mapping[str, str]

    def write(self, path: Path) -> None:
        """Writes it as JSON for ``--config``."""
        path.write_text(json.dumps(self.__dict__, indent=2) + "\n", encoding="utf-8")


def tune(job: TuningJob, dataset: Dataset) -> Tuned:
    """Searches the model's ``search_space``; the model's defaults are the first trial.

    Trials are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011) and cut short when they fall behind
    the median of the earlier ones at the same epoch. Ctrl-C ends the search and keeps the best so far.

    Raises:
        TrainerError: the data or a setting does not allow it, or no trial could be finished.
    """
    model_type = MODELS[job.model]
    fixed = dict(setting.partition("=")[::2] for setting in job.settings)
    parse_settings(model_type.config_type, job.settings)
    choose_device(job.device)  # refused now, not in a trial
    protocol = job.protocol or model_type.protocol
    if protocol not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    metric, higher_is_better = HEADLINES[protocol]
    train = divide(dataset, job.split or default_split(dataset, protocol), job.test_share, job.seed).train
    holdout = validation_holdout(train, protocol, configure(model_type.config_type, fixed).validation_share, job.seed)
    _say(
        f"tuning {job.model} by {metric} on {len(holdout.test):,} of {len(train):,} training interactions "
        f"({holdout.description})"
    )

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{job.study}",
        study_name=f"{job.model}, {protocol}, {dataset.fingerprint()[:16]}",
        direction="maximize" if higher_is_better else "minimize",
        sampler=optuna.samplers.TPESampler(seed=job.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial(_defaults(model_type, fixed))

    search = _Search(job, model_type, fixed, protocol, holdout)
    study.optimize(
        search.run_trial,
        n_trials=job.trials,
        timeout=None if job.minutes is None else 60 * job.minutes,
        callbacks=[lambda study, trial: _tell(study, trial, metric)],
    )
    finished = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    if not finished:
        raise TrainerError("no trial was finished; give it more trials or minutes")
    best = study.best_trial
    assert best.value is not None
    settings = fixed | {name: _text(value) for name, value in best.params.items()}
    ended = sum(trial.state.is_finished() for trial in study.trials)
    return Tuned(job.model, protocol, metric, best.value, ended, settings)


@dataclass(frozen=True)
class _Search:
    """Runs trials.

    Attributes:
        job: what to tune.
        model_type: its model.
        fixed: hyper-parameters that are not to be changed.
        protocol: what trials are judged by.
        holdout: what they are trained on and judged with.
    """

    job: TuningJob
    model_type: type[Model[Any]]
    fixed: Mapping[str, str]
    protocol: str
    holdout: Split

    def run_trial(self, trial: optuna.Trial) -> float:
        """Trains with the hyper-parameters of a trial; returns the metric after the last epoch."""
        config = configure(self.model_type.config_type, {**self.fixed, **self._suggest(trial)})
        measured = itertools.count()

        def measure(model: Recommender) -> float:
            value = headline(model, self.holdout, self.protocol, self.job.seed)
            trial.report(value, next(measured))
            if trial.should_prune():
                raise optuna.TrialPruned
            return value

        every = max(1, config.epochs // _MEASURED_TIMES)
        device = choose_device(self.job.device)
        run = TrainingRun(
            device,
            self.job.seed,
            Progress(f"trial {trial.number}", io.StringIO()),
            device.type == "cuda" if self.job.mixed_precision is None else self.job.mixed_precision,
            validation=Validation(*HEADLINES[self.protocol], measure, every),
        )
        try:
            with stopping_on_interrupt("shortlist: stopping; the best so far is kept"):
                fitted = fit(self.model_type, config, self.holdout.train, run)
        except Diverged as error:
            raise optuna.TrialPruned(str(error)) from error
        except StoppedEarly:
            trial.study.stop()
            raise optuna.TrialPruned from None
        if fitted.stopped:
            trial.study.stop()
            raise optuna.TrialPruned
        value = fitted.history.epochs[-1].metric
        assert value is not None
        return value

    def _suggest(self, trial: optuna.Trial) -> dict[str, str]:
        values = {}
        for name, space in self.model_type.search_space.items():
            if name in self.fixed:
                continue
            if not isinstance(space, Range):
                values[name] = trial.suggest_categorical(name, space.values)
            elif space.whole:
                values[name] = str(trial.suggest_int(name, int(space.low), int(space.high), log=space.log))
            else:
                values[name] = repr(trial.suggest_float(name, space.low, space.high, log=space.log))
        return values


def _defaults(model_type: type[Model[Any]], fixed: Mapping[str, str]) -> dict[str, Any]:
    config = model_type.config_type()  # type: ignore[call-arg]  # every model's own has a default for each field
    values = {name: getattr(config, name) for name in model_type.search_space if name not in fixed}
    # A default outside its range stands for one that is computed from the data; the search begins elsewhere then.
    return {name: value for name, value in values.items() if _within(model_type.search_space[name], value)}


def _within(space: object, value: Any) -> bool:
    return not isinstance(space, Range) or space.low <= value <= space.high


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _tell(study: optuna.Study, trial: optuna.trial.FrozenTrial, metric: str) -> None:
    params = " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    )
    if trial.value is None:
        _say(f"trial {trial.number}: cut short   {params}")
    else:
        _say(f"trial {trial.number}: {metric} {trial.value:.4f} (best {study.best_value:.4f})   {params}")


def _say(text: str) -> None:
    sys.stderr.write(f"shortlist: {text}\n")
