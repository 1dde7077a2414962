"""What a stream of either client sends and yields."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator

from shortlist.v1.recommender_pb2 import RecommendRequest, StreamRecommendRequest, StreamRecommendResponse
from shortlist_client.errors import ShortlistError
from shortlist_client.responses import to_outcome
from shortlist_client.results import Recommendations

Asked = tuple[str, RecommendRequest]
Answered = tuple[str, Recommendations | ShortlistError]


class Sent:
    """The messages of one stream. gRPC would say of an exception of the requests only that there was one."""

    def __init__(self) -> None:
        self._failed: Exception | None = None

    def messages(self, requests: Iterable[Asked]) -> Iterator[StreamRecommendRequest]:
        """Each request with its id, until there are no more or taking one fails."""
        try:
            for request_id, request in requests:
                yield StreamRecommendRequest(request_id=request_id, request=request)
        except Exception as error:  # noqa: BLE001 # it is the caller's own
            self._failed = error

    async def messages_async(
        self, requests: AsyncIterable[Asked] | Iterable[Asked]
    ) -> AsyncIterator[StreamRecommendRequest]:
        """The same of requests that may have to be awaited."""
        if isinstance(requests, AsyncIterable):
            try:
                async for request_id, request in requests:
                    yield StreamRecommendRequest(request_id=request_id, request=request)
            except Exception as error:  # noqa: BLE001 # as above
                self._failed = error
        else:
            for message in self.messages(requests):
                yield message

    def end(self) -> None:
        """Raises what taking the requests failed with, if it did, once everything before is answered."""
        if self._failed is not None:
            raise self._failed


def answered(message: StreamRecommendResponse) -> Answered:
    """An answer, or the error of its request, with the id of what was asked."""
    return message.request_id, to_outcome(message.outcome)
