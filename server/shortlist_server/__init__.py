"""Loads a published model and answers queries over gRPC.

service -> recommend -> {user_embeddings, item_index}; neither gRPC nor protobuf appears below ``service``, and
``app`` builds everything.
"""
