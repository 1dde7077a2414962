"""Item attributes as an Arrow table that a server can memory-map."""

import pandas as pd
import pyarrow as pa

from shortlist.v1 import manifest_pb2
from shortlist_trainer.data.dataset import Int64Array
from shortlist_trainer.errors import DataError
from shortlist_trainer.export.format import INTERACTION_COUNT


def attribute_table(attributes: pd.DataFrame, interaction_counts: Int64Array) -> pa.Table:
    """One row per item: its attributes and its number of interactions.

    Args:
        attributes: one row per item; columns of strings, whole numbers, fractions, truth values or lists of strings.
        interaction_counts: (items,) int64.

    Raises:
        DataError: a column has a reserved name, or values of several types.
    """
    if INTERACTION_COUNT in attributes.columns:
        raise DataError(f"the item attribute {INTERACTION_COUNT!r} is Shortlist's own; rename yours")
    columns = {INTERACTION_COUNT: pa.array(interaction_counts, pa.int64())}
    repeated = attributes.columns[attributes.columns.duplicated()]
    if len(repeated):
        raise DataError(f"the item attribute {repeated[0]!r} is there more than once; rename one")
    for name in attributes.columns:
        try:
            columns[str(name)] = _plain(pa.Array.from_pandas(attributes[name]))
        except pa.ArrowException as error:
            raise DataError(f"the item attribute {name!r} cannot be published: {error}") from error
    return pa.table(columns)


def _plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The same values in one of the five types that the manifest knows; other types become strings."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return array.cast(_ARROW_TYPES[_attribute_type(array.type)])


def _attribute_type(arrow_type: pa.DataType) -> "manifest_pb2.AttributeType.ValueType":
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        return manifest_pb2.ATTRIBUTE_TYPE_STRING_LIST
    if pa.types.is_boolean(arrow_type):
        return manifest_pb2.ATTRIBUTE_TYPE_BOOL
    if pa.types.is_integer(arrow_type):
        return manifest_pb2.ATTRIBUTE_TYPE_INT
    if pa.types.is_floating(arrow_type):
        return manifest_pb2.ATTRIBUTE_TYPE_DOUBLE
    return manifest_pb2.ATTRIBUTE_TYPE_STRING


_ARROW_TYPES = {
    manifest_pb2.ATTRIBUTE_TYPE_STRING: pa.string(),
    manifest_pb2.ATTRIBUTE_TYPE_INT: pa.int64(),
    manifest_pb2.ATTRIBUTE_TYPE_DOUBLE: pa.float64(),
    manifest_pb2.ATTRIBUTE_TYPE_BOOL: pa.bool_(),
    manifest_pb2.ATTRIBUTE_TYPE_STRING_LIST: pa.list_(pa.string()),
}


def describe(table: pa.Table) -> list[manifest_pb2.ItemAttribute]:
    """The columns as the manifest lists them."""
    return [manifest_pb2.ItemAttribute(name=field.name, type=_attribute_type(field.type)) for field in table.schema]
