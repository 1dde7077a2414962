"""ModelService: which versions there are, and what they are."""

from collections.abc import Callable

import grpc

from shortlist.v1 import manifest_pb2, model_pb2, model_pb2_grpc
from shortlist_server.errors import InvalidField, NoModelReady
from shortlist_server.model.store import ModelStore
from shortlist_server.model.versions import State, Version
from shortlist_server.service import requests
from shortlist_server.service.shadow import Shadow
from shortlist_server.telemetry.observer import Summary

_STATES = {
    State.AVAILABLE: model_pb2.MODEL_STATE_AVAILABLE,
    State.LOADING: model_pb2.MODEL_STATE_LOADING,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
}


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Shows and steers the versions of a store.

    Args:
        store: has them.
        summary: says how this process is doing.
        lane: how it answers queries.
        shadow: compares two of them; None where that is not asked for.
    """

    def __init__(
        self, store: ModelStore, summary: Callable[[], Summary], lane: str, shadow: Shadow | None = None
    ) -> None:
        self._store = store
        self._summary = summary
        self._lane = lane
        self._shadow = shadow

    def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        """Every version, newest first, and how this process is doing."""
        summary = self._summary()
        return model_pb2.ListModelsResponse(
            models=[self._message(version, summary) for version in self._store.versions()],
            splits=[model_pb2.Split(label=split.label, percent=split.percent) for split in self._store.splits],
            shadow=None if self._shadow is None else _shadow_message(self._shadow),
            status=_status(summary, self._lane),
        )

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.GetModelResponse:
        """One version with its manifest."""
        number, label = requests.selected_version(request.model)
        if number is None:
            number = self._store.select(label=label).version
        version = self._store.version(number)
        return model_pb2.GetModelResponse(
            model=self._message_now(version), manifest=version.manifest or manifest_pb2.ModelManifest()
        )

    def LoadModel(
        self, request: model_pb2.LoadModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.LoadModelResponse:
        """Loads a version beside the others."""
        return model_pb2.LoadModelResponse(model=self._message_now(self._store.load(_number(request.version))))

    def UnloadModel(
        self, request: model_pb2.UnloadModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.UnloadModelResponse:
        """Frees a version."""
        return model_pb2.UnloadModelResponse(model=self._message_now(self._store.unload(_number(request.version))))

    def SetLabel(self, request: model_pb2.SetLabelRequest, context: grpc.ServicerContext) -> model_pb2.SetLabelResponse:
        """Points a label at a version."""
        label = requests.checked_label("label", request.label)
        version = self._store.set_label(label, request.version or None)
        return model_pb2.SetLabelResponse(model=None if version is None else self._message_now(version))

    def _message_now(self, version: Version) -> model_pb2.Model:
        return self._message(version, self._summary())

    def _message(self, version: Version, summary: Summary) -> model_pb2.Model:
        try:
            is_default = self._store.default().version == version.number
        except NoModelReady:
            is_default = False
        return model_pb2.Model(
            version=version.number,
            state=_STATES[version.state],
            state_reason=version.reason,
            labels=version.labels,
            default=is_default,
            model_name=version.manifest.model_name if version.manifest else "",
            answers=summary.answers.get(version.number, 0),
        )


def _number(version: int) -> int:
    if version < 1:
        raise InvalidField("version", "must be a positive number")
    return version


def _shadow_message(shadow: Shadow) -> model_pb2.Shadow:
    so_far = shadow.comparison
    count = max(so_far.compared, 1)
    return model_pb2.Shadow(
        label=shadow.label,
        version=so_far.version or 0,
        compared_requests=so_far.compared,
        skipped_requests=so_far.skipped,
        mean_overlap=so_far.overlap / count,
        mean_answer_micros=so_far.answer_seconds / count * 1e6,
        mean_shadow_micros=so_far.shadow_seconds / count * 1e6,
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
