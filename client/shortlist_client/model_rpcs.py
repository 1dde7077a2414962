"""The calls of ModelService, as rpcs.py has those of RecommenderService."""

from shortlist.v1 import model_pb2
from shortlist_client import responses
from shortlist_client.rpcs import Rpc, selector


def _list_models() -> model_pb2.ListModelsRequest:
    """Every version in the server's models folder.

    Returns:
        ModelList: a list of Model, newest first, with the splits and the shadow of the server.

    Raises:
        ShortlistError: see shortlist_client.errors.
    """
    return model_pb2.ListModelsRequest()


def _server_status() -> model_pb2.ListModelsRequest:
    """How the server is doing; of several processes on one port, the one that answers.

    Returns:
        ServerStatus, or None from a server that is too old to say.

    Raises:
        ShortlistError: see shortlist_client.errors.
    """
    return model_pb2.ListModelsRequest()


def _get_model(*, model_version: int | None = None, model_label: str | None = None) -> model_pb2.GetModelRequest:
    """One version with its manifest.

    Args:
        model_version: its number; None for the server's default.
        model_label: its label.

    Returns:
        ModelDetails.

    Raises:
        ModelNotFound: the server has no such version or label.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return model_pb2.GetModelRequest(model=selector(model_version, model_label))


def _load_model(version: int) -> model_pb2.LoadModelRequest:
    """Loads a version beside the others, and keeps it loaded; the operator must have allowed it.

    Args:
        version: its number.

    Returns:
        The version as it is then.

    Raises:
        ModelNotFound: the models folder holds no such version.
        FailedPrecondition: it cannot be loaded; the text says why.
        PermissionDenied: the operator has not allowed it, or not this caller.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return model_pb2.LoadModelRequest(version=version)


def _unload_model(version: int) -> model_pb2.UnloadModelRequest:
    """Frees a version after its last request, and keeps it from being loaded again.

    Args:
        version: its number.

    Returns:
        The version as it is then.

    Raises:
        ModelNotFound: the models folder holds no such version.
        FailedPrecondition: it bears a label, or no other is loaded.
        PermissionDenied: the operator has not allowed it, or not this caller.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return model_pb2.UnloadModelRequest(version=version)


def _set_label(label: str, version: int | None) -> model_pb2.SetLabelRequest:
    """Points a label at a version, which is loaded if need be.

    Args:
        label: 1 to 63 of a-z, 0-9 and '-'.
        version: its number; None takes the label away.

    Returns:
        The version that bears the label now; None when it was taken away.

    Raises:
        ModelNotFound: the models folder holds no such version.
        FailedPrecondition: it cannot be loaded; the label stays where it was.
        PermissionDenied: the operator has not allowed it, or not this caller.
        ShortlistError: any other failure; see shortlist_client.errors.
    """
    return model_pb2.SetLabelRequest(label=label, version=version or 0)


_MODELS = "/shortlist.v1.ModelService/"

LOAD_MODEL = Rpc(f"{_MODELS}LoadModel", _load_model, model_pb2.LoadModelResponse, responses.to_model)
UNLOAD_MODEL = Rpc(f"{_MODELS}UnloadModel", _unload_model, model_pb2.UnloadModelResponse, responses.to_model)
SET_LABEL = Rpc(f"{_MODELS}SetLabel", _set_label, model_pb2.SetLabelResponse, responses.to_model_or_none)
LIST_MODELS = Rpc(f"{_MODELS}ListModels", _list_models, model_pb2.ListModelsResponse, responses.to_models)
SERVER_STATUS = Rpc(f"{_MODELS}ListModels", _server_status, model_pb2.ListModelsResponse, responses.to_status)
GET_MODEL = Rpc(f"{_MODELS}GetModel", _get_model, model_pb2.GetModelResponse, responses.to_details)
