"""What checks the shapes and types of signatures while tests run; in production nothing does."""

from beartype import BeartypeConf, beartype

# An int is good enough where a float is asked for, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
