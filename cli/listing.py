"""The commands that tell of models: they load none."""

from __future__ import annotations

import argparse

from ..cards import card, list_models
from .terminal import text_table


def run_list(args: argparse.Namespace) -> None:
    found = [card(name) for name in list_models(args.family, args.inference)]
    rows = [[one.name, one.family, ", ".join(one.inference), one.summary] for one in found]
    print(text_table(["name", "family", "inference", "what it is"], rows))


def run_show(args: argparse.Namespace) -> None:
    print(card(args.name))
