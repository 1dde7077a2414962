"""ModelService: which versions there are, and what they are."""

from collections.abc import Callable

import grpc

from shortlist.v1 import manifest_pb2, model_pb2, model_pb2_grpc
from shortlist_server.errors import NoModelReady, NotSupported
from shortlist_server.model.store import ModelStore, State, Version
from shortlist_server.service import requests
from shortlist_server.telemetry.observer import Summary

_STATES = {
    State.AVAILABLE: model_pb2.MODEL_STATE_AVAILABLE,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
}


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Shows the versions of a store.

    Args:
        store: has them.
        summary: says how this process is doing.
        lane: how it answers unary queries.
    """

    def __init__(self, store: ModelStore, summary: Callable[[], Summary], lane: str) -> None:
        self._store = store
        self._summary = summary
        self._lane = lane

    def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        """Every version, newest first, and how this process is doing."""
        summary = self._summary()
        return model_pb2.ListModelsResponse(
            models=[self._message(version, summary) for version in self._store.versions()],
            status=_status(summary, self._lane),
        )

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.GetModelResponse:
        """One version with its manifest."""
        number, label = requests.selected_version(request.model)
        if number is None:
            number = self._store.select(label=label).version
        version = self._store.version(number)
        return model_pb2.GetModelResponse(
            model=self._message(version, self._summary()), manifest=version.manifest or manifest_pb2.ModelManifest()
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

    def _message(self, version: Version, summary: Summary) -> model_pb2.Model:
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
            answers=summary.answers.get(version.number, 0),
        )


def _status(summary: Summary, lane: str) -> model_pb2.ServerStatus:
    return model_pb2.ServerStatus(
        uptime_seconds=summary.uptime_seconds,
        pid=summary.pid,
        lane=lane,
        calls_answered=summary.answered,
        calls_failed=summary.failed,
        calls_in_flight=summary.load.in_flight,
        queue_depth=summary.load.queue_depth,
        queue_places=summary.load.queue_places,
        last_swap_unix_seconds=summary.last_swap,
    )
