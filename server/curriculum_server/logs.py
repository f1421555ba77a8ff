"""Log lines: a past-tense event and key=value pairs; JSON by flag."""

from __future__ import annotations

import json
import logging
import re
import sys

_PAIR = re.compile(r"(\w+)=(\S+)")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line = {
            **dict(_PAIR.findall(message)),
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": message,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(level: str, *, as_json: bool) -> None:
    """Log this server's lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_JsonFormatter() if as_json else text)
    root = logging.getLogger("curriculum_server")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(level.upper())
