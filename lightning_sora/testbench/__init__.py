"""The world as a plugin: its clips as a source, what can be said of them, and the networks that learn from it.

Installed packages offer :mod:`.parts` by an entry point, as anybody's plugin; nothing else imports this room.
"""
