"""Summaries of fixed size that can be merged: what a window is made of, whoever saw which part of its traffic.

Merging is associative and commutative, so replicas, panes of a sliding window and files of a flush may be added up in
any order and grouping. Every sketch has a size that does not depend on how much it has seen, and a JSON form.
"""
