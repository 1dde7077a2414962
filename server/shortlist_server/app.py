"""The composition root: builds the server from its configuration, starts it and shuts it down."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shortlist.v1 import model_pb2, model_pb2_grpc, recommender_pb2, recommender_pb2_grpc
from shortlist_server.access.config import AccessConfig
from shortlist_server.access.connections import connection_options
from shortlist_server.access.gate import Gate
from shortlist_server.access.tls import server_credentials
from shortlist_server.admission import Admission
from shortlist_server.config import ServerConfig
from shortlist_server.device.choice import choose_device, memory_of
from shortlist_server.device.tables import DeviceTables
from shortlist_server.errors import LoadingStopped
from shortlist_server.heartbeat import BEAT_SECONDS, beat_from
from shortlist_server.model.folder import LoadedModel
from shortlist_server.model.handover import Handover
from shortlist_server.model.plan import Policy
from shortlist_server.model.store import AGAIN_SECONDS, ModelStore
from shortlist_server.model.traffic import parse_splits
from shortlist_server.service.answers import Answers
from shortlist_server.service.fast_calls import Method
from shortlist_server.service.fast_lane import FastLane
from shortlist_server.service.fast_streams import StreamMethod
from shortlist_server.service.guard import Guard
from shortlist_server.service.health import HealthService
from shortlist_server.service.interceptor import AccessInterceptor
from shortlist_server.service.model_service import ModelService
from shortlist_server.service.outcomes import batch_response, stream_response
from shortlist_server.service.plain_lane import PlainLane
from shortlist_server.service.pool import SteadyPool
from shortlist_server.service.recommender_service import RecommenderService
from shortlist_server.service.reflection import add_channelz, add_reflection
from shortlist_server.service.requests import batch_entries
from shortlist_server.service.self_test import self_test
from shortlist_server.service.shadow import Shadow, ShadowedAnswers
from shortlist_server.service.silence import SILENT_PROBE_SECONDS, Silence
from shortlist_server.service.warming import warm
from shortlist_server.service.weights import weight
from shortlist_server.telemetry.logs import finish_log
from shortlist_server.telemetry.observer import Load
from shortlist_server.telemetry.recorder import Telemetry

log = logging.getLogger(__name__)

RECOMMENDER = recommender_pb2.DESCRIPTOR.services_by_name["RecommenderService"]
MODELS = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
WHOLE_SERVER = ""
"""What gRPC health calls a server as a whole."""

_SPARE_THREADS = 8
"""For reflection and ModelService while every place of the recommender is taken."""

_CALLS_A_THREAD = 4
"""Calls that may be there for each of grpc.server's threads, one in hand and others behind it; 21 KB each."""

_HEALTH_THREADS = 16
"""Health's own: a probe is answered though all others are taken, by work or by callers who keep silent."""

_PROBES = 256
"""Probes that may wait where they have a lane of their own."""

_LAST_CALLS_SECONDS = 0.1

_PENDING_CALLS = 10_000
"""Some 10 KB each. Whom gRPC cancels is told neither why nor when to come back, so that it shall hardly ever happen."""

_SIGNAL_SECONDS = 0.05
"""How often is looked, while the first version is being read, whether the server is to stop."""

_LAST_STEP_SECONDS = 5.0
"""For gRPC to close, and for a version that is being read to come to where it can be given up; the process does not
wait any longer."""

_LOADING_NICENESS = 10
"""A version that is being loaded beside one that answers gives way to it. Linux has a niceness for each thread."""


class ServerApp:
    """A gRPC server with its models.

    Args:
        config: everything that can be chosen.
        beat: called every second or more often by who answers calls, for as long as calls are answered.

    Raises:
        OSError: the address cannot be listened on, or a file of certificates or tokens cannot be read.
        ValueError: such a file is broken.
        RuntimeError: there is no such device, or the lane must be fast and this grpcio cannot carry it.
    """

    def __init__(self, config: ServerConfig, beat: Callable[[], None] | None = None) -> None:
        self._config = config
        self._beat = beat
        self._gate = Gate(config.access, admin=config.admin)
        self._device = choose_device(config.device)
        self._telemetry = Telemetry(
            config.telemetry, [(service.full_name, [*service.methods_by_name]) for service in (RECOMMENDER, MODELS)]
        )
        self._store = ModelStore(
            config.models_dir,
            # On the CPU workers share the pages of the files.
            DeviceTables(self._device, None if self._device.type == "cpu" else config.tables),
            Policy(config.keep, config.default_label, parse_splits(config.splits)),
            handover=Handover(config.workers_dir, config.handover_seconds),
            prepare=partial(warm, keep_going=self._keep_going),
            keep_going=self._keep_going,
            on_event=self._model_event,
        )
        self._guard = Guard(self._gate, self._telemetry)
        self._silence = Silence()
        self._health = HealthService(self._silence)
        self._ready = False
        self._started = False
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._looked = threading.Event()
        self._look_again = threading.Event()
        self._reader: threading.Thread | None = None
        threads = config.working + config.waiting + config.streams + _SPARE_THREADS
        self._pool = SteadyPool(threads, "rpc")
        self._server = grpc.server(
            self._pool,
            options=[
                # Unless it is meant, a second server on the same port would silently take half of the calls.
                ("grpc.so_reuseport", int(config.share_port)),
                # Calls of a method that gRPC keeps until they are asked for; beyond them it cancels some by itself, and
                # beyond twice as many all.
                ("grpc.server.max_pending_requests", _PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
                ("grpc.enable_channelz", int(config.channelz)),
                *connection_options(config.access.connections, config.access.calls_per_connection),
            ],
            interceptors=[AccessInterceptor(self._guard)],
            maximum_concurrent_rpcs=_CALLS_A_THREAD * threads,
        )
        self._admission = Admission(config.working, config.waiting)
        self._shadow: Shadow | None = None
        self._lane: FastLane | None = None
        self._probes: FastLane | None = None
        self._add_services()
        self._set_health(ready=False)
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.port, self.address = config.port, f"{host}:{config.port}"
        if not config.share_port:
            self._listen()
        try:
            self._telemetry.listen()
        except OSError:
            self._server.stop(None)
            raise
        self.metrics_url = self._telemetry.metrics_url

    def _listen(self) -> None:
        config, credentials = self._config, server_credentials(self._config.access)
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

    def _add_services(self) -> None:
        config, guard = self._config, self._guard
        answers = Answers(self._store, self._telemetry)
        if config.shadow is not None:
            answers = ShadowedAnswers(self._store, self._telemetry, config.shadow)
            self._shadow = answers.shadow
        streams = Admission(config.streams, waiting=0)
        recommender = RecommenderService(answers, self._admission, streams, guard)
        guard.around(recommender, RECOMMENDER)
        hot = _hot_methods(answers, guard) if _lane_is_fast(config.lane) else {}
        if hot:
            self._lane = FastLane(self._server, hot, self._admission, streams, guard, self._beat)
            # Of its own, so that a probe waits neither for a batch nor for a thread.
            probes = {f"/{health.SERVICE_NAME}/Check": Method(health_pb2.HealthCheckRequest, self._health.answer)}
            everyone = Guard(Gate(AccessConfig(), admin=False))
            self._probes = FastLane(
                self._server,
                probes,
                Admission(1, _PROBES),
                Admission(1, 0),
                everyone,
                silent_seconds=SILENT_PROBE_SECONDS,
            )
            hot = {**hot, **probes}
        pools = {health.SERVICE_NAME: SteadyPool(_HEALTH_THREADS, "health")}
        plain = cast("grpc.Server", PlainLane(self._server, self._silence, left_out=hot, probes=pools))
        recommender_pb2_grpc.add_RecommenderServiceServicer_to_server(recommender, plain)
        models = ModelService(self._store, self._telemetry.summary, "fast" if hot else "plain", self._shadow)
        guard.around(models, MODELS)
        model_pb2_grpc.add_ModelServiceServicer_to_server(models, plain)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, plain)
        names = [RECOMMENDER.full_name, MODELS.full_name, health.SERVICE_NAME]
        if config.channelz:
            names.append(add_channelz(plain, guard))
        add_reflection(plain, names, guard)

    def start(self, stop: threading.Event | None = None) -> None:
        """Listens, loads what answers, and watches the models folder from then on.

        Of several processes on one port each listens once it can answer: from then on it is dealt its share of
        connections.

        Args:
            stop: is waited for no longer once it is set; then there is only to be stopped.

        Raises:
            OSError: the address cannot be listened on.
        """
        for concern in self._config.access.concerns(self._config.host):
            log.warning(concern)
        self._gate.start()
        if self._config.share_port:
            if not self._load_first(stop):
                return
            self._listen()
        self._server.start()
        self._started = True
        threading.Thread(target=self._silence.watch, args=(self._stopped,), name="silence", daemon=True).start()
        if self._probes is not None:
            self._probes.start()
        if self._lane is not None:
            self._lane.start()
        elif self._beat is not None:
            arguments = (self._pool, self._beat, self._stopped)
            threading.Thread(target=beat_from, args=arguments, name="heartbeat", daemon=True).start()
        self._telemetry.start(self._how_busy)
        if not self._config.share_port:
            self._load_first(stop)

    def _load_first(self, stop: threading.Event | None) -> bool:
        """Begins to watch the models folder; waits until a version answers, or none can, or it is to stop, as it says.

        Returns:
            Whether the server is to go on.
        """
        threading.Thread(target=self._watch, name="models-watch", daemon=True).start()
        while not self._looked.wait(_SIGNAL_SECONDS):
            if stop is not None and stop.is_set():
                return False
        if not self._ready:
            log.warning("%s holds no good version yet; `shortlist train` publishes one", self._config.models_dir)
        return True

    def _model_event(self, event: str, version: int, model: LoadedModel | None) -> None:
        if event == "reading":
            finish_log()  # whoever reads it may die of it, as where memory runs out
            return
        self._telemetry.model_event(event, version, model)
        if event == "default" and not self._ready and not self._stopping.is_set():
            self._set_health(ready=True)
            self._ready = True

    def _watch(self) -> None:
        """Looks at the models folder again and again; a thread of its own reads what is to be read."""
        while not self._stopping.is_set():
            self._look_again.clear()
            due, reads = None, self._reader is not None
            try:
                due = self._store.look()
            except Exception:  # whatever it is, what is loaded goes on answering and the next look may do better
                log.exception("%s could not be looked at", self._config.models_dir)
            if due is not None and not reads:
                self._reader = threading.Thread(target=self._read, args=(due,), name="models", daemon=True)
                try:
                    self._reader.start()
                except RuntimeError as error:  # there are no more threads; the next look may do better
                    log.error("version %d cannot be read now: %s", due, error)
                    self._reader = None
            if self._ready or (due is None and not reads):
                self._looked.set()
            soon = min(AGAIN_SECONDS, self._config.look_seconds)
            self._look_again.wait(soon if self._store.hands_over else self._config.look_seconds)

    def _read(self, version: int) -> None:
        if self._ready:
            with contextlib.suppress(OSError):  # this is no Linux
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICENESS)
        try:
            self._store.read(version)
        except LoadingStopped:
            log.debug("version %d is not needed any more", version)
        except Exception:  # whatever it is, what is loaded goes on answering
            log.exception("version %d could not be read", version)
            self._reader = None
            return  # the next look, in its time, may do better
        self._reader = None  # before whoever looks is woken, who could start no other otherwise
        self._look_again.set()

    def _keep_going(self) -> None:
        if self._stopping.is_set():
            raise LoadingStopped

    def _how_busy(self) -> Load:
        return Load(
            in_flight=self._guard.under_way.count,
            queue_depth=self._admission.taken,
            queue_places=self._admission.places,
            device_memory=memory_of(self._device),
        )

    def _set_health(self, *, ready: bool) -> None:
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        for name in (WHOLE_SERVER, RECOMMENDER.full_name):
            self._health.set(name, serving if ready else not_serving)
        self._health.set(MODELS.full_name, serving)

    def stop(self) -> None:
        """Turns health to NOT_SERVING, refuses new calls, lets those under way finish, then closes."""
        self._stopping.set()
        self._look_again.set()
        self._health.enter_graceful_shutdown()
        if self._ready and self._started:  # otherwise nobody has been answered who could look elsewhere now
            time.sleep(self._config.drain_seconds)
        closed = self._server.stop(self._config.grace_seconds)
        if not self._guard.under_way.wait_for_none(self._config.grace_seconds):
            log.warning("calls under way were cut off after %.1f s", self._config.grace_seconds)
        # What is left are watchers of the health service, which would hold the server for the whole grace time, and
        # perhaps a call that was accepted a moment ago and has not begun.
        if not closed.wait(_LAST_CALLS_SECONDS):
            self._server.stop(None)
            if not closed.wait(_LAST_STEP_SECONDS):
                log.error("gRPC does not close; the process ends without it")
        for lane in (self._lane, self._probes):
            if lane is not None and self._started:
                lane.close()
        self._stopped.set()
        self._health.close()
        # Nobody answers calls any more, so that this thread has to say that nothing hangs.
        until = time.monotonic() + _LAST_STEP_SECONDS
        while (reader := self._reader) is not None and time.monotonic() < until:
            self._say_alive()
            reader.join(BEAT_SECONDS)
        if self._shadow is not None:
            self._shadow.close()
        self._say_alive()
        self._gate.close()
        self._telemetry.stop()

    def _say_alive(self) -> None:
        if self._beat is not None:
            self._beat()


def _hot_methods(answers: Answers, guard: Guard) -> dict[str, Method | StreamMethod]:
    service = f"/{RECOMMENDER.full_name}/"
    return {
        f"{service}Recommend": Method(recommender_pb2.RecommendRequest, answers.recommend, weight=weight),
        f"{service}BatchRecommend": Method(
            recommender_pb2.BatchRecommendRequest,
            answers.recommend,
            entries=batch_entries,
            joined=lambda outcomes, metadata: batch_response(outcomes, guard, metadata),
            weight=weight,
        ),
        f"{service}StreamRecommend": StreamMethod(
            recommender_pb2.StreamRecommendRequest,
            answers.recommend,
            entry=lambda message: message.request,
            response=lambda message, outcome: stream_response(message.request_id, outcome, guard),
            weight=weight,
        ),
        f"{service}SimilarItems": Method(recommender_pb2.SimilarItemsRequest, answers.similar_items, weight=weight),
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
