"""Messages in, messages out: everything that knows gRPC or protobuf, and nothing that knows how to recommend."""
