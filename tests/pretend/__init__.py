"""A pretended accelerator: what a step would transfer and wait for on a GPU, counted on a CPU."""
