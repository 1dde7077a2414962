"""From a query to the best items: tables, indexes, filters and fold-in, and nothing of the wire or of versions."""
