"""What checks the shapes and types of signatures while tests run; in production nothing does."""

import jaxtyping

from tests.annotations import checked, jaxtyped

#: The import hook of jaxtyping (``--jaxtyping-packages``) decorates with this one.
jaxtyping.jaxtyped = jaxtyped

__all__ = ["checked"]
