"""The three patches that are no apply: JSON merge patch, JSON patch, and strategic merge patch for built-in kinds.

All are pure: they return a new object and leave the old one as it is.
"""

from __future__ import annotations

from typing import Any

import orjson

from slipway_local.apiserver import errors
from slipway_local.apiserver.codec import MAX_BODY, copy, same
from slipway_local.apiserver.schema import Node

MAX_OPERATIONS = 10_000  # kube-apiserver's limit on one JSON patch.


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


# --- JSON patch (RFC 6902) ----------------------------------------------------------------------------------------


def json_patch(target: Any, operations: Any) -> Any:
    """Apply a list of operations. Raises ApiError: 400 for a malformed patch, 422 for one that does not apply."""
    if not isinstance(operations, list):
        raise errors.bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch")
    if len(operations) > MAX_OPERATIONS:
        detail = f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}"
        raise errors.too_large(detail)
    result, copied = copy(target), 0
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise errors.bad_request("error decoding patch: an operation must be an object with op and path")
        if operation.get("op") == "copy":
            # Each copy may double the document: a few operations could stand for gigabytes.
            copied += len(orjson.dumps(_get(result, _pointer(str(operation.get("from", ""))))))
            if copied > MAX_BODY:
                raise errors.too_large(f"the patch copies more than {MAX_BODY} bytes")
        result = _operate(result, operation)
    return result


def _refused() -> errors.ApiError:
    """422 for an operation that does not fit the object; kube-apiserver does not say which one either."""
    return errors.ApiError(422, "Invalid", "the server rejected our request due to an error in our request", {})


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    op, path = operation.get("op"), _pointer(operation["path"])
    if op in ("add", "replace", "test") and "value" not in operation:
        raise errors.bad_request(f"error decoding patch: {op} needs a value")
    if op == "add":
        return _add(document, path, copy(operation["value"]))
    if op == "remove":
        return _remove(document, path)
    if op == "replace":
        _get(document, path)
        return _set(document, path, copy(operation["value"]))
    if op in ("move", "copy"):
        source = _pointer(str(operation.get("from", "")))
        value = copy(_get(document, source))
        if op == "move":
            if path[: len(source)] == source and path != source:
                raise _refused()
            document = _remove(document, source)
        return _add(document, path, value)
    if op == "test":
        if not same(_get(document, path), operation["value"]):
            raise _refused()
        return document
    raise errors.bad_request(f"error decoding patch: unknown operation {op!r}")


def _pointer(text: str) -> list[str]:
    if text == "":
        return []
    if not text.startswith("/"):
        raise errors.bad_request(f"error decoding patch: {text!r} is not a JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text[1:].split("/")]


def _index(items: list[Any], token: str, *, end: bool = False) -> int:
    if end and token == "-":
        return len(items)
    if not token.isdecimal() or int(token) > len(items) - (0 if end else 1):
        raise _refused()
    return int(token)


def _get(document: Any, path: list[str]) -> Any:
    for token in path:
        if isinstance(document, dict):
            if token not in document:
                raise _refused()
            document = document[token]
        elif isinstance(document, list):
            document = document[_index(document, token)]
        else:
            raise _refused()
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, token = _get(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent.insert(_index(parent, token, end=True), value)
    elif isinstance(parent, dict):
        parent[token] = value
    else:
        raise _refused()
    return document


def _set(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, token = _get(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        parent[_index(parent, token)] = value
    else:
        parent[token] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        raise _refused()
    _get(document, path)
    parent, token = _get(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        del parent[_index(parent, token)]
    else:
        del parent[token]
    return document


# --- strategic merge patch ----------------------------------------------------------------------------------------


def strategic_merge_patch(target: Any, patch: dict[str, Any], node: Node) -> Any:
    """Merge like a merge patch, but lists of type map by their key and lists of type set as sets.

    Understands $patch (replace, delete, merge), $deleteFromPrimitiveList, $retainKeys and $setElementOrder
    (https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md).
    """
    return _strategic(target if isinstance(target, dict) else {}, patch, node)


def _strategic(target: dict[str, Any], patch: dict[str, Any], node: Node) -> dict[str, Any]:
    directive = patch.get("$patch")
    body = {key: value for key, value in patch.items() if not key.startswith("$")}
    if directive == "replace":
        return {key: _stripped(value) for key, value in body.items()}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise errors.bad_request(f"Unknown patch type {directive!r} in map")
    retain = patch.get("$retainKeys")
    result = {k: v for k, v in target.items() if retain is None or k in retain}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.split("/", 1)[1]
            result[name] = [item for item in result.get(name) or [] if item not in value]
    for name, value in body.items():
        child = node.child(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            known = result.get(name)
            result[name] = _strategic(known if isinstance(known, dict) else {}, value, child or node)
        elif isinstance(value, list) and child is not None and child.list_type != "atomic":
            result[name] = _strategic_list(result.get(name) or [], value, child)
        else:
            result[name] = value
    for key, order in patch.items():
        if key.startswith("$setElementOrder/"):
            _reorder(result, key.split("/", 1)[1], order, node)
    return result


def _strategic_list(target: list[Any], patch: list[Any], node: Node) -> list[Any]:
    if node.list_type == "set":
        return [*target, *(item for item in patch if item not in target)]
    key = node.map_keys[0]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [_stripped(item) for item in patch if item.get("$patch") != "replace"]
    result = list(target)
    assert node.items is not None
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise errors.bad_request(f"map: {orjson.dumps(item).decode()} does not contain declared merge key: {key}")
        at = next((i for i, known in enumerate(result) if known.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del result[at]
        elif at is None:
            result.append(_strategic({}, item, node.items))
        else:
            result[at] = _strategic(result[at], item, node.items)
    return result


def _reorder(result: dict[str, Any], name: str, order: list[Any], node: Node) -> None:
    items, child = result.get(name), node.child(name)
    if not isinstance(items, list) or child is None or child.list_type == "atomic":
        return
    if child.list_type == "map":
        key = child.map_keys[0]
        wanted = [entry.get(key) for entry in order if isinstance(entry, dict)]
        result[name] = sorted(items, key=lambda item: _position(wanted, item.get(key)))
    else:
        result[name] = sorted(items, key=lambda item: _position(order, item))


def _position(order: list[Any], value: Any) -> int:
    return order.index(value) if value in order else len(order)


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _stripped(v) for k, v in value.items() if not k.startswith("$")}
    if isinstance(value, list):
        return [_stripped(item) for item in value]
    return value
