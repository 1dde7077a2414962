"""Every test starts from the claim in its name; helpers are in ``small_world`` and ``running``."""
