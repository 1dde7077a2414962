"""The models, one module each. A new model is a module here and a line in ``MODELS``."""

from shortlist_trainer.models.base import Embeddings, Model, ModelConfig, TrainingRun
from shortlist_trainer.models.config import parse_settings
from shortlist_trainer.models.ials import ImplicitALS
from shortlist_trainer.models.mf import MatrixFactorization

__all__ = ["DEFAULT_MODEL", "MODELS", "Embeddings", "Model", "ModelConfig", "TrainingRun", "parse_settings"]

MODELS: dict[str, type[Model]] = {model.name: model for model in (ImplicitALS, MatrixFactorization)}

DEFAULT_MODEL = ImplicitALS.name
