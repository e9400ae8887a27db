"""Training: DeepSpeed ZeRO, the recipe of the paper, runs that survive."""
