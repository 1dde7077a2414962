"""The composition root: builds the server from its configuration, starts it and shuts it down."""

import logging
import os
import threading
import time
from collections.abc import Container, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shortlist.v1 import model_pb2, model_pb2_grpc, recommender_pb2, recommender_pb2_grpc
from shortlist_server.access.config import AccessConfig
from shortlist_server.access.connections import connection_options
from shortlist_server.access.gate import Gate
from shortlist_server.access.tls import server_credentials
from shortlist_server.admission import Admission
from shortlist_server.model.choices import is_label
from shortlist_server.model.store import ModelStore
from shortlist_server.model.traffic import parse_splits
from shortlist_server.service.answers import Answers
from shortlist_server.service.fast_lane import FastLane, Method, self_test
from shortlist_server.service.fast_streams import StreamMethod
from shortlist_server.service.guard import CallsUnderWay, guard
from shortlist_server.service.health import HealthService
from shortlist_server.service.interceptor import AccessInterceptor
from shortlist_server.service.model_service import ModelService
from shortlist_server.service.outcomes import batch_response, stream_response
from shortlist_server.service.recommender_service import RecommenderService
from shortlist_server.service.reflection import add_reflection
from shortlist_server.service.requests import batch_entries
from shortlist_server.service.shadow import Shadow, ShadowedAnswers
from shortlist_server.service.wire import serialized

log = logging.getLogger(__name__)

RECOMMENDER = recommender_pb2.DESCRIPTOR.services_by_name["RecommenderService"]
MODELS = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
WHOLE_SERVER = ""
"""What gRPC health calls a server as a whole."""

_SPARE_THREADS = 8
"""For health, reflection and ModelService while every place of the recommender is taken."""

_LAST_CALLS_SECONDS = 0.1

_LOADING_NICENESS = 10
"""A version that is being loaded beside one that answers gives way to it. Linux has a niceness for each thread."""

LANES = ("auto", "fast", "plain")


@dataclass(frozen=True)
class ServerConfig:
    """Everything that can be chosen about a server.

    Attributes:
        models_dir: the folder whose newest good version answers.
        host: the address to listen on; loopback unless told otherwise.
        port: 0 for any free one.
        device: torch device of the user table, "auto" for a GPU where there is one.
        working: requests that compute at once.
        waiting: requests that may wait for their turn.
        streams: streams that may be open at once.
        drain_seconds: how long health has been NOT_SERVING before new calls are refused.
        grace_seconds: how long calls under way may take to finish at shutdown.
        share_port: other processes may listen on the port too; calls are dealt out among them.
        lane: how queries are answered: "fast", in batches (service/fast_lane.py); "plain", call by call on a pool
            of threads; "auto", fast where this grpcio can.
        look_seconds: how often the models folder is looked at for new versions and labels.
        keep: how many older versions stay loaded beside the newest.
        default_label: bears the version that answers when none is named; None for the newest.
        splits: shares of the users, each as LABEL=PERCENT, whose requests go to the version of a label when they name
            none.
        shadow: a label whose version is asked what callers asked, when there is time, to compare the answers; None for
            none.
        admin: LoadModel, UnloadModel and SetLabel are answered.
        access: who may call, and how often.

    Raises:
        ValueError: a value is out of its range, or strangers would be let in unasked.
    """

    models_dir: Path
    host: str = "127.0.0.1"
    port: int = 50051
    device: str = "auto"
    working: int = 2
    waiting: int = 128
    streams: int = 64
    drain_seconds: float = 0.0
    grace_seconds: float = 10.0
    share_port: bool = False
    lane: str = "auto"
    look_seconds: float = 0.5
    keep: int = 1
    default_label: str | None = None
    splits: Sequence[str] = ()
    shadow: str | None = None
    admin: bool = False
    access: AccessConfig = field(default_factory=AccessConfig)

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("port", 0, 65_535),
            ("working", 1, 1_024),
            ("waiting", 0, 65_536),
            ("streams", 1, 1_024),
            ("drain_seconds", 0, 3_600),
            ("grace_seconds", 0, 3_600),
            ("look_seconds", 0.001, 3_600),
            ("keep", 0, 1_000),
        ):
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise ValueError(f"{name} must lie between {lowest:,} and {highest:,}, not be {value:,}")
        if self.lane not in LANES:
            raise ValueError(f"lane must be one of {', '.join(LANES)}, not {self.lane!r}")
        for label in (self.default_label, self.shadow, *(split.label for split in parse_splits(self.splits))):
            if label is not None and not is_label(label):
                raise ValueError(f"a label must be 1 to 63 of a-z, 0-9 and '-', not {label!r}")
        self.access.check_address(self.host, admin=self.admin)


class ServerApp:
    """A gRPC server with its models.

    Raises:
        OSError: the address cannot be listened on, or a file of certificates or tokens cannot be read.
        ValueError: such a file is broken.
        RuntimeError: torch has no such device, or the lane must be fast and this grpcio cannot carry it.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._store = ModelStore(
            config.models_dir,
            _device(config.device),
            keep=config.keep,
            default_label=config.default_label,
            splits=parse_splits(config.splits),
        )
        credentials = server_credentials(config.access)
        self._gate = Gate(config.access, admin=config.admin)
        self._under_way = CallsUnderWay()
        self._health = HealthService()
        self._ready = False
        self._stopping = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(config.working + config.waiting + config.streams + _SPARE_THREADS, "rpc"),
            # Unless it is meant, a second server on the same port would silently take half of the calls.
            options=[("grpc.so_reuseport", int(config.share_port)), *connection_options(config.access.connections)],
            interceptors=[AccessInterceptor(self._gate)],
        )
        admission = Admission(config.working, config.waiting)
        answers = Answers(self._store)
        self._shadow: Shadow | None = None
        if config.shadow is not None:
            answers = ShadowedAnswers(self._store, config.shadow)
            self._shadow = answers.shadow
        streams = Admission(config.streams, waiting=0)
        recommender = RecommenderService(answers, admission, streams, self._gate)
        guard(recommender, RECOMMENDER, self._under_way, self._gate)
        hot = _hot_methods(answers) if _lane_is_fast(config.lane) else {}
        gate = self._gate if self._gate.asks_readers else None
        self._lane = FastLane(self._server, hot, admission, self._under_way, streams, gate) if hot else None
        plain = cast("grpc.Server", _PlainLane(self._server, hot))
        recommender_pb2_grpc.add_RecommenderServiceServicer_to_server(recommender, plain)
        models = ModelService(self._store, self._shadow)
        guard(models, MODELS, self._under_way, self._gate)
        model_pb2_grpc.add_ModelServiceServicer_to_server(models, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (RECOMMENDER.full_name, MODELS.full_name, health.SERVICE_NAME), self._gate)
        self._set_health(ready=False)
        address = f"[{config.host}]" if ":" in config.host else config.host
        try:
            self.port = (
                self._server.add_insecure_port(f"{address}:{config.port}")
                if credentials is None
                else self._server.add_secure_port(f"{address}:{config.port}", credentials)
            )
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {address}:{config.port}: it is in use or not an address of this machine; "
                "choose another with --host and --port"
            ) from error
        self.address = f"{address}:{self.port}"

    def start(self) -> None:
        """Listens, then loads the newest good version; from then on the models folder is watched."""
        for concern in self._config.access.concerns(self._config.host):
            log.warning(concern)
        self._gate.start()
        self._server.start()
        if self._lane is not None:
            self._lane.start()
        if not self._refresh():
            log.warning("%s holds no good version yet; `shortlist train` publishes one", self._config.models_dir)
        threading.Thread(target=self._watch, name="models", daemon=True).start()

    def _refresh(self) -> bool:
        ready = self._store.refresh()
        if ready and not self._ready and not self._stopping.is_set():
            self._set_health(ready=True)
            self._ready = True
        return ready

    def _watch(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICENESS)
        while not self._stopping.wait(self._config.look_seconds):
            try:
                self._refresh()
            except Exception:  # whatever it is, what is loaded goes on answering and the next look may do better
                log.exception("%s could not be looked at", self._config.models_dir)

    def _set_health(self, *, ready: bool) -> None:
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for name in (WHOLE_SERVER, RECOMMENDER.full_name):
            self._health.set(name, serving if ready else not_serving)
        self._health.set(MODELS.full_name, serving)

    def stop(self) -> None:
        """Turns health to NOT_SERVING, refuses new calls, lets those under way finish, then closes."""
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        time.sleep(self._config.drain_seconds)
        closed = self._server.stop(self._config.grace_seconds)
        if not self._under_way.wait_for_none(self._config.grace_seconds):
            log.warning("calls under way were cut off after %.1f s", self._config.grace_seconds)
        # What is left are watchers of the health service, which would hold the server for the whole grace time, and
        # perhaps a call that was accepted a moment ago and has not begun.
        if not closed.wait(_LAST_CALLS_SECONDS):
            self._server.stop(None)
            closed.wait()
        if self._lane is not None:
            self._lane.close()
        if self._shadow is not None:
            self._shadow.close()
        self._gate.close()


class _PlainLane:
    """A server as RecommenderService needs it: with methods left out, and answers that may be written already.

    The other lane's methods are left out, as both lanes would claim them.
    """

    def __init__(self, server: grpc.Server, left_out: Container[str]) -> None:
        self._server = server
        self._left_out = left_out

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As ``grpc.Server`` does."""
        kept = {}
        for name, handler in handlers.items():
            if f"/{service}/{name}" not in self._left_out:
                make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
                if handler.response_streaming:
                    make, behaviour = grpc.stream_stream_rpc_method_handler, handler.stream_stream
                kept[name] = make(behaviour, handler.request_deserializer, serialized)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, kept),))
        self._server.add_registered_method_handlers(service, kept)

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: what generated code passes here cannot be divided, and comes once more by name."""


def _hot_methods(answers: Answers) -> dict[str, Method | StreamMethod]:
    service = f"/{RECOMMENDER.full_name}/"
    return {
        f"{service}Recommend": Method(recommender_pb2.RecommendRequest, answers.recommend),
        f"{service}BatchRecommend": Method(
            recommender_pb2.BatchRecommendRequest, answers.recommend, batch_entries, batch_response
        ),
        f"{service}StreamRecommend": StreamMethod(
            recommender_pb2.StreamRecommendRequest,
            answers.recommend,
            entry=lambda message: message.request,
            response=lambda message, outcome: stream_response(message.request_id, outcome),
        ),
        f"{service}SimilarItems": Method(recommender_pb2.SimilarItemsRequest, answers.similar_items),
        f"{service}Score": Method(recommender_pb2.ScoreRequest, answers.score),
    }


def _lane_is_fast(wanted: str) -> bool:
    """Whether the fast lane shall be used; tries it out where it may be.

    Raises:
        RuntimeError: it must be used and cannot.
    """
    if wanted == "plain":
        return False
    try:
        self_test()
    except Exception as error:  # whatever it is that has changed
        if wanted == "fast":
            raise RuntimeError(f"grpcio {grpc.__version__} cannot carry the fast lane: {error!r}") from error
        log.warning("grpcio %s cannot carry the fast lane, answering by the plain one: %r", grpc.__version__, error)
        return False
    return True


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    torch.empty(1, device=device)  # fails now, not at the first request
    return device
