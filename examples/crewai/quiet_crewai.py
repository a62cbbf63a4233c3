"""Import this before crewai: it sends nothing home, asks no questions, and leaves the telling to the example."""

import logging
import os

for _name in ("CREWAI_DISABLE_TELEMETRY", "CREWAI_DISABLE_TRACKING", "CREWAI_DISABLE_VERSION_CHECK"):
    os.environ[_name] = "true"
os.environ["OTEL_SDK_DISABLED"] = "true"
os.environ["CREWAI_TRACING_ENABLED"] = "false"
os.environ["CREWAI_TESTING"] = "true"  # or the first run of all asks whether to trace

from crewai.events.utils.console_formatter import set_suppress_console_output  # noqa: E402  # it reads those

set_suppress_console_output(True)
logging.getLogger("crewai").setLevel(logging.CRITICAL)
