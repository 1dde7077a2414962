"""What those who write a model folder and those who read it must agree on. docs/model-format.md says the rest."""

FORMAT_VERSION = 1
"""Rises whenever an older reader would misread the folder."""

INTERACTION_COUNT = "interaction_count"
"""An item attribute of every model: how many users interacted with the item."""

NO_CLUSTER = -1
"""The cluster label of a user or item without an interaction."""
