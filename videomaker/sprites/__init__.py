"""The sprite world: clips drawn from a seed, the measure of fidelity, and the small model that is trained on them."""
