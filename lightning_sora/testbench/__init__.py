"""The world as a plugin: its clips as a source, what can be said of them, and the networks that learn from it.

What it registers, :mod:`.parts` names, which installed packages offer as anybody's plugin does: nothing else imports
this room.
"""
