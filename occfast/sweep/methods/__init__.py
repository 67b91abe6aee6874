"""Methods: choice of the positions to evaluate, and computation of maps from their scores."""
