"""Class-conditional diffusion: noise schedule, network, objective, training loop, sampling."""
