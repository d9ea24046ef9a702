"""Ask the service of compose.yaml for orders, by eight threads, until it is stopped.

python load.py http://app:8000
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import urllib.error
import urllib.request


def ask(url: str, first: int) -> None:
    for order in itertools.count(first, 8):
        try:
            urllib.request.urlopen(f"{url}/orders/{order}", timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()  # a 404 or a 500 is one of the answers
        except OSError:
            time.sleep(1)  # it is being restarted
        time.sleep(0.05)


if __name__ == "__main__":
    for first in range(8):
        threading.Thread(target=ask, args=(sys.argv[1].rstrip("/"), first), daemon=True).start()
    threading.Event().wait()
