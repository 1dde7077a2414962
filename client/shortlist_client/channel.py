"""How both clients connect: retries by gRPC's own service config, and message limits."""

import json
from collections.abc import Sequence

RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "shortlist.v1.RecommenderService"}, {"service": "shortlist.v1.ModelService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    # When most calls fail, retrying them only adds to the load: each failure takes a token, each success gives a tenth
    # back, and below half of the tokens nothing is retried.
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}
"""gRPC service config, https://github.com/grpc/grpc/blob/master/doc/service_config.md. Every call only reads."""


def channel_options() -> Sequence[tuple[str, str | int]]:
    """Options of a channel to Shortlist."""
    return [
        ("grpc.enable_retries", 1),
        ("grpc.service_config", json.dumps(RETRIES)),
        # A batch's answer of 100,000 items with ids of 512 bytes is 52 MB.
        ("grpc.max_receive_message_length", 64 << 20),
    ]
