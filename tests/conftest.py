"""What holds for every test: examples are found alike on every machine, however busy it is; kernels are interpreted
where there is no GPU, whichever test imports them first."""

from __future__ import annotations

import interpreted  # noqa: F401
from hypothesis import HealthCheck, settings

# Without this, hypothesis fails a test whose example takes more than 200 ms, or whose examples take long to make:
# both say something about the machine. Examples come from the test alone, so a failure is there again next time.
settings.register_profile(
    "headrace",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("headrace")
