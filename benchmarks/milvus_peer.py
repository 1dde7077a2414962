"""What benchmarks/milvus.py does through Milvus's own client, in the environment that has it; not run by hand.

It imports nothing of Shortlist's, which that environment lacks.
"""

import sys
from pathlib import Path

import grpc
import numpy as np
from pymilvus import Collection, CollectionSchema, DataType, FieldSchema, connections, utility
from pymilvus.client.prepare import Prepare
from pymilvus.grpc_gen.milvus_pb2 import SearchResults

SEARCH = "/milvus.proto.milvus.MilvusService/Search"

_NAME = "items"
_LINKS, _EF_CONSTRUCTION = 32, 200
_ROWS_AT_ONCE = 20_000  # of 64 columns they are 5 MB, and a message may be 64
_INDEX_SECONDS = 7_200


def fill(vectors_file: str) -> None:
    """Makes the collection of the vectors in a .npy file, in one segment, and its index."""
    vectors = np.load(vectors_file, mmap_mode="r")
    if utility.has_collection(_NAME):
        utility.drop_collection(_NAME)
    fields = [
        FieldSchema("row", DataType.INT64, is_primary=True),
        FieldSchema("embedding", DataType.FLOAT_VECTOR, dim=vectors.shape[1]),
    ]
    collection = Collection(_NAME, CollectionSchema(fields), shards_num=1, consistency_level="Eventually")
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        block = vectors[start : start + _ROWS_AT_ONCE]
        collection.insert([list(range(start, start + len(block))), block.tolist()])
    collection.flush()
    parameters = {"M": _LINKS, "efConstruction": _EF_CONSTRUCTION}
    collection.create_index("embedding", {"index_type": "HNSW", "metric_type": "IP", "params": parameters})
    utility.wait_for_index_building_complete(_NAME, timeout=_INDEX_SECONDS)
    print(collection.num_entities)


def load() -> None:
    """Brings the collection into memory and prints how many segments it has there."""
    Collection(_NAME).load()
    print(len(utility.get_query_segment_info(_NAME)))


def ask(address: str, queries_file: str, k: int, ef: int, out: Path) -> None:
    """Asks for each query's best k by the very bytes that the load will be made of.

    Writes each request to ``out`` as N.request, and the rows found as found.npy, (queries, k) int64.

    Raises:
        RuntimeError: Milvus refused a search.
    """
    found = []
    with grpc.insecure_channel(address) as channel:
        search: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SEARCH)
        for place, query in enumerate(np.load(queries_file)):
            request = Prepare.search_requests_with_expr(
                _NAME,
                [query.tolist()],
                "embedding",
                {"metric_type": "IP", "params": {"ef": ef}},
                k,
                consistency_level="Eventually",  # nothing is waited for
            ).SerializeToString()
            (out / f"{place}.request").write_bytes(request)
            answer = SearchResults.FromString(search(request))
            if answer.status.error_code:
                raise RuntimeError(answer.status.reason)
            rows = list(answer.results.ids.int_id.data)
            found.append(rows + [-1] * (k - len(rows)))
    np.save(out / "found.npy", np.array(found, np.int64))


def main() -> None:
    """``fill ADDRESS VECTORS``, ``load ADDRESS`` or ``ask ADDRESS QUERIES K EF FOLDER``."""
    command, address, *rest = sys.argv[1:]
    host, _, port = address.rpartition(":")
    connections.connect(host=host, port=port)
    if command == "fill":
        fill(rest[0])
    elif command == "load":
        load()
    else:
        ask(address, rest[0], int(rest[1]), int(rest[2]), Path(rest[3]))


if __name__ == "__main__":
    main()
