"""What jobs of the engines' tests do instead of training."""

import os
import signal
import time

from lightning_sora.errors import SoraError


def run(what: str, seconds: float = 0.0) -> None:
    """What happens: nothing, a mistake, a bug, a death, a wait, or the value of a variable as a mistake."""
    print(os.getpid(), flush=True)
    if what == "fail":
        raise SoraError("as it was asked to")
    if what == "bug":
        raise KeyError("nobody caught this")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what.isupper():
        raise SoraError(os.environ.get(what, "unset"))
    time.sleep(seconds)
