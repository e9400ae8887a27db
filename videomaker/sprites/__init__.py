"""The sprite world: creatures and clips drawn from a seed, the measure, and the small model that is trained on them."""
