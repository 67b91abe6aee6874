"""Both papers together: what training with coverings and PDSN's masks give a deployed recognizer."""
