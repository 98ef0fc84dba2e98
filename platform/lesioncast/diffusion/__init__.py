"""Conditional diffusion model of the paper, in torch alone: no Ray, no storage, no files."""
