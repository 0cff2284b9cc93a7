"""The feature lists of ``qSupported``, which both sides send in the same form."""

from __future__ import annotations


def parse_features(text: bytes) -> dict[str, str]:
    """Features by name: ``name=value`` maps to the value, ``name+`` and the like to the flag, which
    is ``+``, ``-`` or ``?``. What has neither form is ignored."""
    features = {}
    for item in text.decode(errors="replace").split(";"):
        name, equals, value = item.partition("=")
        if equals:
            features[name] = value
        elif item.endswith(("+", "-", "?")):
            features[item[:-1]] = item[-1]
    return features
