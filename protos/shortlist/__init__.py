"""The wire contract and the model manifest, as generated from the .proto files beside this module."""
