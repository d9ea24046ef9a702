"""`install` for programs that run on either backend of anyio."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..drivers import Installed as InstalledOnLoop
    from .trio import Installed as InstalledOnTrio

__all__ = ["install"]


def install(*, sync: bool = False) -> InstalledOnLoop | InstalledOnTrio:
    """Give every task that is made from now on a span, named by its coroutine, on the backend that is running.

    sync: on asyncio, as of `asyncinspect_logging.install`; on trio, without effect.
    Returns what undoes it, by a call or as a context manager. Raises RuntimeError where no backend is running.
    """
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            from .trio import install as install_on_trio

            return install_on_trio()
    if asyncio._get_running_loop() is None:
        raise RuntimeError("install() needs a running event loop; call it in a coroutine that anyio.run() runs")
    from ..drivers import install as install_on_loop

    return install_on_loop(sync=sync)
