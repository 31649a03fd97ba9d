"""Replay labelling with people made of numbers: how fast would a strategy have been?"""

from strategies.simulate.people import CostOf, Person, constant, learnt, published
from strategies.simulate.replay import Session, Step, System, replay
from strategies.simulate.report import Summary, csv_of, markdown_of, plot, summarise

__all__ = [
    "CostOf",
    "Person",
    "Session",
    "Step",
    "Summary",
    "System",
    "constant",
    "csv_of",
    "learnt",
    "markdown_of",
    "plot",
    "published",
    "replay",
    "summarise",
]
