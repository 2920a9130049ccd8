"""A loss as a perplexity, and as JSON, which has no infinity."""

import json
import math
from typing import Any

_LARGEST = math.log(1.7e308)  # a loss whose perplexity is still a number


def perplexity(loss: float) -> float:
    """Return exp(loss), for a loss in nats per token; infinite where that overflows or the loss is no number."""
    return math.exp(loss) if loss <= _LARGEST else math.inf  # nan <= x is false


def json_text(document: Any, indent: int | None = None) -> str:
    """Return a document as JSON in ASCII, for terminals of any encoding; a number that is not finite is null."""
    return json.dumps(_finite(document), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
