"""The graph as text, dot (https://graphviz.org/doc/info/lang.html), JSON and a page that needs nothing else. Pure."""

from __future__ import annotations

import html
import json
from collections.abc import Callable

from slipway_cli.lineage.graph import Graph, Node

GONE = "deleted: told from what others say of it"
_WIDE = 160  # characters of a fact in the tree; the other forms have all of it


def tree(graph: Graph) -> str:
    """What a terminal shows: each thing once, with its facts below it."""
    lines: list[str] = []
    seen: set[str] = set()

    def walk(node_id: str, head: str, rest: str, relation: str) -> None:
        node = graph.nodes[node_id]
        title = f"{relation}: {node.title}" if relation else node.title
        if node_id in seen:
            lines.append(f"{head}{title} (above)")
            return
        seen.add(node_id)
        lines.append(head + title)
        children = list(graph.below(node_id))
        bar = rest + ("│  " if children else "   ")
        lines.extend(f"{bar}{name}: {_short(value)}" for name, value in _facts(node).items())
        for index, edge in enumerate(children):
            last = index == len(children) - 1
            walk(edge.target, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), edge.relation)

    walk(graph.root, "", "", "")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def dot(graph: Graph) -> str:
    """For graphviz: dot -Tsvg."""
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box, fontname=sans];"]
    for node in graph.nodes.values():
        label = "\\l".join(_quoted(line) for line in [node.title, *(f"{k}: {v}" for k, v in _facts(node).items())])
        style = ", style=dashed" if node.missing else ""
        lines.append(f'  "{_quoted(node.id)}" [label="{label}\\l"{style}];')
    lines += [
        f'  "{_quoted(edge.source)}" -> "{_quoted(edge.target)}" [label="{_quoted(edge.relation)}"];'
        for edge in graph.edges
    ]
    return "\n".join([*lines, "}"]) + "\n"


def as_json(graph: Graph) -> str:
    """For programs."""
    return json.dumps(graph.to_json(), indent=2, ensure_ascii=False) + "\n"


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222;background:#fff}
ul{list-style:none;padding-left:1.4em;border-left:1px solid #ccc;margin:.2em 0}
body>ul{border:0;padding:0}summary{cursor:pointer;font-weight:600}.relation{color:#666;font-weight:400}
.gone summary{color:#999}dl{display:grid;grid-template-columns:8em 1fr;margin:.2em 0 .4em 1.2em;font-size:.9em}
dt{color:#666}dd{margin:0;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}ul{border-color:#444}dt,.relation{color:#999}}
"""


def page(graph: Graph) -> str:
    """A page of nested parts, without a script and without anything from elsewhere."""
    seen: set[str] = set()

    def walk(node_id: str, relation: str) -> str:
        node = graph.nodes[node_id]
        words = f'<span class="relation">{html.escape(relation)}</span> ' if relation else ""
        title = words + html.escape(node.title)
        if node_id in seen:
            return f'<li>{title} <a href="#{html.escape(node_id)}">above</a></li>'
        seen.add(node_id)
        facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in _facts(node).items())
        inner = "".join(walk(edge.target, edge.relation) for edge in graph.below(node_id))
        return (
            f'<li id="{html.escape(node_id)}"{" class=gone" if node.missing else ""}><details open>'
            f"<summary>{title}</summary><dl>{facts}</dl>{f'<ul>{inner}</ul>' if inner else ''}</details></li>"
        )

    name = html.escape(graph.nodes[graph.root].title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Lineage of {name}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Lineage of {name}</h1><ul>{walk(graph.root, '')}</ul></body></html>\n"
    )


FORMATS: dict[str, Callable[[Graph], str]] = {"tree": tree, "dot": dot, "json": as_json, "html": page}


def _facts(node: Node) -> dict[str, str]:
    return {"Object": GONE, **node.facts} if node.missing else node.facts


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDE else line[: _WIDE - 3] + "..."


def _quoted(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
