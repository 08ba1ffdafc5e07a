"""The HTTP server as a deployment of Ray Serve: copies of it, more while more is asked. Needs the extra `ray`.

blockrank serve's application:      serve.run(deployment(settings, load))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
