"""The models, one module each. A new model is a module here and a line in ``MODELS``."""

from typing import Any

from shortlist_trainer.models.base import Checkpoint, Embeddings, FoldIn, Model, Ranker, TrainingRun, Validation
from shortlist_trainer.models.config import Choices, ModelConfig, Range, configure, parse_settings
from shortlist_trainer.models.fit import Fitted, fit
from shortlist_trainer.models.history import EpochRecord, TrainingHistory
from shortlist_trainer.models.ials import ImplicitALS
from shortlist_trainer.models.mf import MatrixFactorization
from shortlist_trainer.models.mf_fullbatch import FullBatchMF
from shortlist_trainer.models.ncf import NeuralCF
from shortlist_trainer.models.ncf_rating import RatingNetwork
from shortlist_trainer.models.softmax_mf import SoftmaxMF
from shortlist_trainer.models.svdpp import SVDpp

__all__ = [
    "DEFAULT_MODEL",
    "MODELS",
    "Checkpoint",
    "Choices",
    "Embeddings",
    "EpochRecord",
    "Fitted",
    "FoldIn",
    "Model",
    "ModelConfig",
    "Range",
    "Ranker",
    "TrainingHistory",
    "TrainingRun",
    "Validation",
    "configure",
    "fit",
    "parse_settings",
]

_MODEL_TYPES: tuple[type[Model[Any]], ...] = (
    *(ImplicitALS, SoftmaxMF, NeuralCF),  # of implicit feedback
    *(MatrixFactorization, FullBatchMF, SVDpp, RatingNetwork),  # of ratings
)

MODELS = {model.name: model for model in _MODEL_TYPES}

DEFAULT_MODEL = ImplicitALS.name
