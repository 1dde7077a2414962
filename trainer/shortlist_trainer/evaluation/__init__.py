"""How good a model is on interactions it has not seen."""
