"""Domain code of Replenish: data, diffusion, curation, comparison, report."""

__version__ = "0.1.0"
