"""ModelService: which versions there are, and what they are."""

import grpc

from shortlist.v1 import manifest_pb2, model_pb2, model_pb2_grpc
from shortlist_server.errors import NoModelReady, NotSupported
from shortlist_server.model.store import ModelStore, State, Version
from shortlist_server.service import requests

_STATES = {
    State.AVAILABLE: model_pb2.MODEL_STATE_AVAILABLE,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
}


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Shows the versions of a store."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        """Every version, newest first."""
        return model_pb2.ListModelsResponse(models=[self._message(version) for version in self._store.versions()])

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.GetModelResponse:
        """One version with its manifest."""
        number, label = requests.selected_version(request.model)
        if number is None:
            number = self._store.select(label=label).version
        version = self._store.version(number)
        return model_pb2.GetModelResponse(
            model=self._message(version), manifest=version.manifest or manifest_pb2.ModelManifest()
        )

    def LoadModel(
        self, request: model_pb2.LoadModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.LoadModelResponse:
        """Not built yet."""
        raise NotSupported("LoadModel")

    def UnloadModel(
        self, request: model_pb2.UnloadModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.UnloadModelResponse:
        """Not built yet."""
        raise NotSupported("UnloadModel")

    def SetLabel(self, request: model_pb2.SetLabelRequest, context: grpc.ServicerContext) -> model_pb2.SetLabelResponse:
        """Not built yet."""
        raise NotSupported("SetLabel")

    def _message(self, version: Version) -> model_pb2.Model:
        try:
            is_default = self._store.default().version == version.number
        except NoModelReady:
            is_default = False
        return model_pb2.Model(
            version=version.number,
            state=_STATES[version.state],
            state_reason=version.reason,
            default=is_default,
            model_name=version.manifest.model_name if version.manifest else "",
        )
