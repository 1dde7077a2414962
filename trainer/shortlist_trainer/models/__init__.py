"""The models, one module each. A new model is a module here and a line in ``MODELS``."""

from typing import Any

from shortlist_trainer.models.base import Checkpoint, Embeddings, Model, Ranker, TrainingRun, Validation
from shortlist_trainer.models.config import ModelConfig, configure, parse_settings
from shortlist_trainer.models.fit import Fitted, fit
from shortlist_trainer.models.history import EpochRecord, TrainingHistory
from shortlist_trainer.models.ials import ImplicitALS
from shortlist_trainer.models.mf import MatrixFactorization
from shortlist_trainer.models.ncf import NeuralCF
from shortlist_trainer.models.ncf_rating import RatingNetwork

__all__ = [
    "DEFAULT_MODEL",
    "MODELS",
    "Checkpoint",
    "Embeddings",
    "EpochRecord",
    "Fitted",
    "Model",
    "ModelConfig",
    "Ranker",
    "TrainingHistory",
    "TrainingRun",
    "Validation",
    "configure",
    "fit",
    "parse_settings",
]

MODELS: dict[str, type[Model[Any]]] = {
    model.name: model for model in (ImplicitALS, MatrixFactorization, NeuralCF, RatingNetwork)
}

DEFAULT_MODEL = ImplicitALS.name
