"""The wire contract may grow, but nothing that callers were promised may change."""

from google.protobuf import descriptor_pb2

from tests.contract.make_golden import DESCRIPTORS, contract_descriptors

Promises = dict[str, object]


def promises(described: descriptor_pb2.FileDescriptorSet) -> Promises:
    """Everything a caller's generated code relies on, by its full name."""
    found: Promises = {}
    for file in described.file:
        for message in file.message_type:
            found |= of_message(file.package, message)
        for enum in file.enum_type:
            found |= of_enum(file.package, enum)
        for service in file.service:
            for method in service.method:
                shape = (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
                found[f"{file.package}.{service.name}.{method.name}"] = shape
    return found


def of_message(prefix: str, message: descriptor_pb2.DescriptorProto) -> Promises:
    name = f"{prefix}.{message.name}"
    found: Promises = {name: "message"}
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
        found[f"{name} field {field.number}"] = (field.name, field.type, field.label, field.type_name, oneof)
    for nested in message.nested_type:
        found |= of_message(name, nested)
    for enum in message.enum_type:
        found |= of_enum(name, enum)
    return found


def of_enum(prefix: str, enum: descriptor_pb2.EnumDescriptorProto) -> Promises:
    return {f"{prefix}.{enum.name} value {value.number}": value.name for value in enum.value}


def test_everything_that_was_promised_is_still_there() -> None:
    golden = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    now = promises(contract_descriptors())
    broken = {name: (was, now.get(name)) for name, was in promises(golden).items() if now.get(name) != was}
    assert not broken, f"changed or removed, which breaks callers: {broken}"


def test_what_is_new_is_promised_from_now_on() -> None:
    golden = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    new = promises(contract_descriptors()).keys() - promises(golden).keys()
    assert not new, f"run `python -m tests.contract.make_golden protos` and commit the result: {sorted(new)}"
