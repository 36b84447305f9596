"""The lineage as a graph: things, and what each was made from. Data only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """One thing of the chain: a Deployment, version, retrain, TrainJob, EvalJob, model, data or drift."""

    id: str  # kind/name, unique in the graph
    kind: str
    title: str
    facts: dict[str, str] = field(default_factory=dict)
    missing: bool = False  # its object is gone; what is told comes from the status of others


@dataclass(frozen=True)
class Edge:
    """`source` has `target` as its `relation`: a version has a TrainJob as what it was trained by."""

    source: str
    target: str
    relation: str


@dataclass
class Graph:
    """Nodes and edges, in the order in which they were found. Without cycles: everything comes from something older."""

    root: str = ""
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def add(self, node: Node) -> str:
        """The node, unless one of its id is there already. Its id."""
        self.nodes.setdefault(node.id, node)
        return node.id

    def link(self, source: str, target: str, relation: str) -> None:
        """An edge, once."""
        edge = Edge(source, target, relation)
        if edge not in self.edges:
            self.edges.append(edge)

    def below(self, node: str) -> Iterator[Edge]:
        """The edges that leave a node."""
        return (edge for edge in self.edges if edge.source == node)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        nodes = [
            {"id": n.id, "kind": n.kind, "title": n.title, "facts": n.facts, "missing": n.missing}
            for n in self.nodes.values()
        ]
        edges = [{"from": e.source, "to": e.target, "relation": e.relation} for e in self.edges]
        return {"root": self.root, "nodes": nodes, "edges": edges}
