"""The composition root: builds the server from its configuration, starts it and shuts it down."""

import logging
import threading
import time
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shortlist.v1 import model_pb2, model_pb2_grpc, recommender_pb2, recommender_pb2_grpc
from shortlist_server.admission import Admission
from shortlist_server.model.store import ModelStore
from shortlist_server.service.answers import Answers
from shortlist_server.service.fast_lane import FastLane, Method, self_test
from shortlist_server.service.guard import CallsUnderWay, guard
from shortlist_server.service.model_service import ModelService
from shortlist_server.service.plain_lane import PlainLane
from shortlist_server.service.recommender_service import RecommenderService

log = logging.getLogger(__name__)

RECOMMENDER = recommender_pb2.DESCRIPTOR.services_by_name["RecommenderService"]
MODELS = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
WHOLE_SERVER = ""
"""What gRPC health calls a server as a whole."""

_SPARE_THREADS = 8
"""For health, reflection and ModelService while every place of the recommender is taken."""

_LAST_CALLS_SECONDS = 0.1

LANES = ("auto", "fast", "plain")

# The contract lets a request name 10,000 ids of 512 bytes, which is more than the 4 MiB that gRPC allows by itself.
_MAX_REQUEST_BYTES = 16 << 20


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
        lane: how unary queries are answered: "fast", in batches (service/fast_lane.py); "plain", one by one on a pool
            of threads; "auto", fast where this grpcio can.
        retry_load_seconds: how often a folder without a good version is looked at again.

    Raises:
        ValueError: a value is out of its range.
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
    retry_load_seconds: float = 2.0

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("port", 0, 65_535),
            ("working", 1, 1_024),
            ("waiting", 0, 65_536),
            ("streams", 1, 1_024),
            ("drain_seconds", 0, 3_600),
            ("grace_seconds", 0, 3_600),
        ):
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise ValueError(f"{name} must lie between {lowest:,} and {highest:,}, not be {value:,}")
        if self.lane not in LANES:
            raise ValueError(f"lane must be one of {', '.join(LANES)}, not {self.lane!r}")


class ServerApp:
    """A gRPC server with its models.

    Raises:
        OSError: the address cannot be listened on.
        RuntimeError: torch has no such device, or the lane must be fast and this grpcio cannot carry it.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._store = ModelStore(config.models_dir, _device(config.device))
        self._under_way = CallsUnderWay()
        self._health = health.HealthServicer()
        self._stopping = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(config.working + config.waiting + config.streams + _SPARE_THREADS, "rpc"),
            # Unless it is meant, a second server on the same port would silently take half of the calls.
            options=[
                ("grpc.so_reuseport", int(config.share_port)),
                ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
            ],
        )
        admission = Admission(config.working, config.waiting)
        answers = Answers(self._store)
        recommender = RecommenderService(answers, admission, Admission(config.streams, waiting=0))
        guard(recommender, RECOMMENDER, self._under_way)
        hot = _hot_methods(answers) if _lane_is_fast(config.lane) else {}
        self._lane = FastLane(self._server, hot, admission, self._under_way) if hot else None
        plain = cast("grpc.Server", PlainLane(self._server, left_out=hot))
        recommender_pb2_grpc.add_RecommenderServiceServicer_to_server(recommender, plain)
        models = ModelService(self._store)
        guard(models, MODELS, self._under_way)
        model_pb2_grpc.add_ModelServiceServicer_to_server(models, plain)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, plain)
        names = (RECOMMENDER.full_name, MODELS.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, plain)
        self._set_health(ready=False)
        address = f"[{config.host}]" if ":" in config.host else config.host
        try:
            self.port = self._server.add_insecure_port(f"{address}:{config.port}")
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {address}:{config.port}: it is in use or not an address of this machine; "
                "choose another with --host and --port"
            ) from error
        self.address = f"{address}:{self.port}"

    def start(self) -> None:
        """Listens, then loads the newest good version; keeps looking for one while there is none."""
        self._server.start()
        if self._lane is not None:
            self._lane.start()
        if self._load():
            return
        log.warning("%s holds no good version yet; `shortlist train` publishes one", self._config.models_dir)
        threading.Thread(target=self._load_later, name="load", daemon=True).start()

    def _load(self) -> bool:
        ready = self._store.load_newest()
        if not self._stopping.is_set():
            self._set_health(ready=ready)
        return ready

    def _load_later(self) -> None:
        while not self._stopping.wait(self._config.retry_load_seconds):
            if self._load():
                return

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


def _hot_methods(answers: Answers) -> dict[str, Method]:
    service = f"/{RECOMMENDER.full_name}/"
    return {
        f"{service}Recommend": Method(recommender_pb2.RecommendRequest, answers.recommend),
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
