"""A recipe: its files and flags, read and checked, and what is built from it."""
