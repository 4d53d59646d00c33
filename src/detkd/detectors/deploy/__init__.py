"""Detectors as graphs for other runtimes: what a deployable graph is, and its files."""

from detkd.detectors.deploy.graph import Graph, export_graph, make_graph, portable

__all__ = ["Graph", "export_graph", "make_graph", "portable"]
