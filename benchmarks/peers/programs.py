"""Which program stands for a peer: PEER=PATH on the command line."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Collection


def add_option(parser: argparse.ArgumentParser, flag: str, peers: Collection[str], help: str) -> None:
    """An option of (peer, path) pairs; a peer that is none of `peers` and a path that cannot be run are refused."""

    def pair(text: str) -> tuple[str, str]:
        peer, _, path = text.partition("=")
        if peer not in peers:
            raise argparse.ArgumentTypeError(f"{text!r}: PEER=PATH, PEER being one of {', '.join(peers)}")
        if not shutil.which(path):
            raise argparse.ArgumentTypeError(f"{text!r}: there is no program {path!r}")
        return peer, path

    parser.add_argument(flag, nargs="*", type=pair, default=[], metavar="PEER=PATH", help=help)
