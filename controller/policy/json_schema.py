"""The JSON Schema of a policy, for editors.

Owns the way from pydantic's schema to draft 7, which is what editors read. The shipped copy is
`policies/policy.schema.json`; a test keeps it current. It must not say anything that
`controller.policy.schema` does not.
"""

from __future__ import annotations

import json
from typing import Any

from controller.policy.schema import PolicySchema

_DRAFT = "http://json-schema.org/draft-07/schema#"


def build_schema() -> dict[str, Any]:
    """Return the schema of a policy as JSON Schema draft 7."""
    raw = PolicySchema.model_json_schema(ref_template="#/definitions/{model}")
    definitions = raw.pop("$defs")
    document: dict[str, Any] = _translate(raw)
    return {
        "$schema": _DRAFT,
        "title": "Triton Governor policy",
        **document,
        "definitions": {name: _translate(definitions[name]) for name in sorted(definitions)},
    }


def schema_text() -> str:
    """Return the schema as the file that is shipped."""
    return json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n"


def _translate(node: Any, *, names: bool = False) -> Any:
    """Return a node in draft 7; `names`: its keys are the operator's, not the schema's."""
    if isinstance(node, list):
        return [_translate(item) for item in node]
    if not isinstance(node, dict):
        return node
    if names:
        return {key: _translate(value) for key, value in node.items()}
    kept = {
        key: _translate(value, names=key in ("properties", "patternProperties"))
        for key, value in node.items()
        # Titles repeat the key, and a null default says "omitted", as the description does.
        if key != "title" and not (key == "default" and value is None)
    }
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    if "$ref" in kept and len(kept) > 1:  # draft 7 ignores what stands beside $ref
        kept = {"allOf": [{"$ref": kept.pop("$ref")}], **kept}
    return kept
