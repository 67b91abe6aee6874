"""Methods: which positions are evaluated, and what a map is made of."""
