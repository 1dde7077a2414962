"""Writes what later versions must still read: a model folder, and the descriptors of the wire contract.

python -m tests.contract.make_golden folder      # once for each format version; never over an old one
python -m tests.contract.make_golden protos      # after a field or method has been added
"""

import sys
from pathlib import Path

import numpy as np
from google.protobuf import descriptor_pb2

from shortlist.v1 import common_pb2, manifest_pb2, model_pb2, recommender_pb2
from shortlist_trainer.export.format import FORMAT_VERSION
from shortlist_trainer.models.base import Embeddings
from tests.small_world import dataset_of, publish_embeddings, titles

GOLDEN = Path(__file__).parent / "golden"
DESCRIPTORS = GOLDEN / "shortlist_v1.binpb"


def contract_descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The descriptors of the contract as it is now."""
    described = descriptor_pb2.FileDescriptorSet()
    for module in (common_pb2, manifest_pb2, model_pb2, recommender_pb2):
        module.DESCRIPTOR.CopyToProto(described.file.add())
    return described


def write_model_folder() -> Path:
    """Publishes four users and five items whose answers can be computed by hand."""
    dataset = dataset_of(
        [("ann", "a", 5), ("ann", "b", 4), ("bob", "c", 3), ("cleo", "d", 2), ("dan", "e", 1), ("dan", "a", 1)],
        titles(["a", "b", "c", "d", "e"]),
        name="golden",
    )
    embeddings = Embeddings(
        users=np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1], [2, -1, 1]], np.float32),
        items=np.array([[4, 0, 0.5], [3, 1, 0], [1, 1, 0.25], [0, 2, 0], [-1, 3, -0.5]], np.float32),
        score_kind="rating",
        user_bias=np.array([0.5, 0, -0.5, 1], np.float32),
        score_constant=3,
        bias_columns=1,
    )
    return publish_embeddings(GOLDEN / f"format_{FORMAT_VERSION}", dataset, embeddings, name="golden")


if __name__ == "__main__":
    if sys.argv[1:] == ["folder"]:
        sys.stdout.write(f"{write_model_folder()}\n")
    elif sys.argv[1:] == ["protos"]:
        DESCRIPTORS.write_bytes(contract_descriptors().SerializeToString(deterministic=True))
    else:
        sys.exit(__doc__)
