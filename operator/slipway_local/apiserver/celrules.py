"""x-kubernetes-validations: CEL rules at every level of a schema, compiled when the CRD is installed (KEP-2876).

A rule that ends in an error has failed. Two differences from kube-apiserver are known: rules are not type-checked or
costed beforehand, and `==` on set and map lists regards order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from slipway_local.apiserver import errors
from slipway_local.apiserver.errors import FieldError
from slipway_local.apiserver.lean_cel import cel, stdlib
from slipway_local.apiserver.schema import MISSING, Node, RuleSource, SchemaError
from slipway_local.apiserver.validation import correlate

# fmt: off
_ERRORS = {"modulo by zero": "modulus by zero", "division by zero": "division by zero"}
_RESERVED = frozenset({
    "true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
    "let", "loop", "package", "namespace", "return", "var", "void", "while",
})
_NATIVE = frozenset({
    "size", "int", "uint", "double", "string", "bytes", "timestamp", "duration", "type", "dyn",
    "contains", "startsWith", "endsWith", "matches",
    "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear",
    "getHours", "getMinutes", "getSeconds", "getMilliseconds",
})
# fmt: on
# What kube-apiserver offers beyond CEL's core and this server has too; anything else is refused with the CRD.
_STRINGS = "charAt indexOf lastIndexOf substring replace split join lowerAscii upperAscii trim"
_SETS = "sets.contains sets.equivalent sets.intersects"


def _is_sorted(items: list[Any]) -> bool:
    return all(a <= b for a, b in pairwise(items))


def _find(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found.group(0) if found else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [m.group(0) for m in re.finditer(pattern, text)]
    return found if limit < 0 else found[:limit]


_EXTENSIONS: dict[str, Any] = {
    **{name: stdlib.STDLIB_FUNCTIONS[name] for name in f"{_STRINGS} {_SETS} min max sum".split()},
    "isSorted": _is_sorted,
    "find": _find,
    "findAll": _find_all,
}


@dataclass(frozen=True)
class _Program:
    source: RuleSource
    run: Any
    message: Any
    transition: bool
    extended: bool
    fields: frozenset[str] | None  # the fields of self and oldSelf that it reads, where the text tells


@dataclass
class RuleTree:
    """The compiled rules of a schema, shaped like the schema and holding only branches that have any."""

    node: Node
    programs: tuple[_Program, ...] = ()
    properties: dict[str, RuleTree] = field(default_factory=dict)
    additional: RuleTree | None = None
    items: RuleTree | None = None
    rewrite: bool = False  # Whether values must be changed before CEL sees them (timestamps, escaped names).


def compile_rules(node: Node, path: str = "") -> RuleTree | None:
    """Compile every rule below a node; None where there is none.

    Raises SchemaError for a rule that does not parse and for a default that breaks one.
    """
    if not node.has_rules:
        return None
    tree = RuleTree(node=node)
    tree.programs = tuple(_compile(rule, f"{path}.x-kubernetes-validations[{i}]") for i, rule in enumerate(node.rules))
    for name, child in node.properties.items():
        below = compile_rules(child, f"{path}.properties[{name}]")
        if below:
            tree.properties[name] = below
    if node.additional is not None:
        tree.additional = compile_rules(node.additional, f"{path}.additionalProperties")
    if node.items is not None:
        tree.items = compile_rules(node.items, f"{path}.items")
    tree.rewrite = bool(tree.programs) and _mark_special(node)
    # A default is judged as it is written, before it is filled in from within.
    if node.default is not MISSING and (failures := evaluate(tree, node.default, "")):
        raise SchemaError(f"{path}.default", failures[0].body)
    return tree


def _compile(rule: RuleSource, path: str) -> _Program:
    try:
        run = cel.compile(rule.rule)
        message = cel.compile(rule.message_expression) if rule.message_expression else None
    except ValueError as failure:
        raise SchemaError(f"{path}.rule", f"compilation failed: {failure}") from None
    variables = set(run.variables())
    functions = {name for name in run.functions() if name[0].isalpha()} - _NATIVE
    known = _EXTENSIONS.keys() | {name.split(".")[1] for name in _SETS.split() if "sets" in variables}
    unknown = sorted(functions - known)
    if unknown:
        raise SchemaError(f"{path}.rule", f"compilation failed: undeclared reference to '{unknown[0]}'")
    extended = bool(functions) or "sets" in variables
    return _Program(rule, run, message, "oldSelf" in variables, extended, _fields_read(rule))


def _fields_read(rule: RuleSource) -> frozenset[str] | None:
    text = f"{rule.rule} {rule.message_expression}"
    uses = len(re.findall(r"\b(?:self|oldSelf)\b", text))
    fields = re.findall(r"\b(?:self|oldSelf)\.([A-Za-z]\w*)\b(?!\s*\()", text)
    return frozenset(fields) if len(fields) == uses and not any("__" in field for field in fields) else None


def evaluate(tree: RuleTree, value: Any, path: str, old: Any = MISSING) -> list[FieldError]:
    """Run the rules on a value and everything in it. `old` is what stood here before, where that can be told."""
    found: list[FieldError] = []
    _evaluate(tree, value, path, old, found)
    return found


def _evaluate(tree: RuleTree, value: Any, path: str, old: Any, found: list[FieldError]) -> None:
    if value is None:
        return
    unchanged = old is not MISSING and old == value
    if tree.programs:
        _run_programs(tree, value, path, old, unchanged, found)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        prefix = f"{path}." if path else ""
        for name, below in tree.properties.items():
            if name in value:
                _evaluate(below, value[name], prefix + name, before.get(name, MISSING), found)
        if tree.additional is not None:
            for name, child in value.items():
                _evaluate(tree.additional, child, f"{path}[{name}]", before.get(name, MISSING), found)
    elif isinstance(value, list) and tree.items is not None:
        previous = correlate(tree.node, old)
        for index, item in enumerate(value):
            _evaluate(tree.items, item, f"{path}[{index}]", previous(item), found)


def _run_programs(tree: RuleTree, value: Any, path: str, old: Any, unchanged: bool, found: list[FieldError]) -> None:
    due = [
        program
        for program in tree.programs
        if (old is not MISSING and old is not None if program.transition else not unchanged)
    ]
    if not due:
        return
    fields: frozenset[str] | None = frozenset()
    for program in due:
        fields = None if fields is None or program.fields is None else fields | program.fields
    variables = {"self": _visible(value, tree, fields)}
    if any(program.transition for program in due):
        variables["oldSelf"] = _visible(old, tree, fields)
    context = cel.Context(
        variables=variables, functions=_EXTENSIONS if any(program.extended for program in due) else None
    )
    for program in due:
        failure = _run(program, context, tree.node.type or "object", value, path)
        if failure is not None:
            found.append(failure)


def _visible(value: Any, tree: RuleTree, fields: frozenset[str] | None) -> Any:
    # Handing a value to CEL costs a copy, so rules get only the fields that they name.
    if fields is not None and isinstance(value, dict):
        value = {name: value[name] for name in fields if name in value}
    return _rewritten(value, tree.node) if tree.rewrite else value


def _run(program: _Program, context: Any, type_: str, value: Any, path: str) -> FieldError | None:
    source = program.source
    text = source.message or source.rule.strip()
    try:
        if program.run.execute(context) is True:
            return None
    except Exception as failure:
        reason = f"no such key: {failure.args[0]}" if isinstance(failure, KeyError) else _reason(str(failure))
        return errors.invalid(path or "<nil>", type_, f"{reason} evaluating rule: {text}")
    where = path + source.field_path if path else source.field_path.lstrip(".")
    detail = source.message or f"failed rule: {text}"
    if program.message is not None:
        detail = _message(program.message, context) or detail
    return _failure(source.reason, where or "<nil>", value, detail)


def _reason(said: str) -> str:
    """The library's words for an error in those of cel-go, which kube-apiserver shows."""
    return next((theirs for ours, theirs in _ERRORS.items() if said.startswith(ours)), said)


def _message(program: Any, context: Any) -> str:
    try:
        said = program.execute(context)
    except Exception:
        return ""
    said = said.strip() if isinstance(said, str) else ""
    return "" if "\n" in said or len(said) > 5120 else said


def _failure(reason: str, where: str, value: Any, detail: str) -> FieldError:
    shown = errors.OMITTED if isinstance(value, (dict, list)) else value
    if reason == "FieldValueForbidden":
        return errors.forbidden_field(where, detail)
    if reason == "FieldValueRequired":
        return errors.required(where, detail)
    if reason == "FieldValueDuplicate":
        return errors.duplicate(where, shown)
    return errors.invalid(where, shown, detail)


# --- values as CEL sees them --------------------------------------------------------------------------------------


def _mark_special(node: Node) -> bool:
    below = [*node.properties.values(), *filter(None, (node.additional, node.items))]
    marked = [_mark_special(child) for child in below]
    odd = any(_escaped(name) != name for name in node.properties)
    node.cel_special = node.format in ("date-time", "date") or odd or any(marked)
    return node.cel_special


def _escaped(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    if name.isidentifier() and "__" not in name:
        return name
    for plain, escaped in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")):
        name = name.replace(plain, escaped)
    return name


def _rewritten(value: Any, node: Node) -> Any:
    if not node.cel_special:
        return value
    if isinstance(value, dict):
        result = {}
        for name, child in value.items():
            schema = node.properties.get(name) or node.additional
            key = _escaped(name) if name in node.properties else name
            result[key] = child if schema is None else _rewritten(child, schema)
        return result
    if isinstance(value, list) and node.items is not None:
        return [_rewritten(item, node.items) for item in value]
    if isinstance(value, str) and node.format in ("date-time", "date"):
        moment = datetime.fromisoformat(value)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return value
