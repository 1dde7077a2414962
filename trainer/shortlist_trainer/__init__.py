"""From interaction data to a published model: data -> split -> train -> evaluate -> export -> publish."""
