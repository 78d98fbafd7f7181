"""Ablations: one factor, its arms, their seeds, an equal budget, and a verdict."""
