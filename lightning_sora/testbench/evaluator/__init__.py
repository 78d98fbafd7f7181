"""A small network that reads the facts of world clips, and judges captions against them."""
