"""Drills of ranks that cannot meet, lose each other, or change in number."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

from tests.drills.drill import Drill
from tests.drills.namespaces import FIRST_HOST, two_hosts
from tests.drills.place import Outcome, Place
from tests.drills.processes import environments_of_ranks
from tests.drills.stops import LOST


def cut_network(place: Place) -> Outcome:
    """Cut the cable between two hosts with one rank each, and join them again."""
    with two_hosts() as hosts:
        options: dict[str, Any] = {
            "ranks": 2,
            "before": [host.enter() for host in hosts],
            "environment": {"MASTER_ADDR": FIRST_HOST, "GLOO_SOCKET_IFNAME": "veth"},
        }
        commands = place.start("train.timeout_s=5", **options)
        place.wait_for_step(4, commands)
        hosts[0].run("ip", "link", "set", "veth", "down")
        return place.end(commands, partial(hosts[0].run, "ip", "link", "set", "veth", "up"), **options)


def busy_port(place: Place) -> Outcome:
    """Start rank 0 at a port that another program uses."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        alone = next(environments_of_ranks(2)) | {"MASTER_PORT": str(busy.getsockname()[1])}
        return place.refuse("train.timeout_s=5", environment=alone)


def alone(place: Place) -> Outcome:
    """Start rank 1 without rank 0."""
    return place.refuse("train.timeout_s=5", environment=[*environments_of_ranks(2)][1])


def more_ranks(place: Place) -> Outcome:
    """Resume a run of one process on two ranks."""
    place.interrupted()
    outcome = place.end(place.start(ranks=2))
    return Outcome(outcome.codes, outcome.output, outcome.state, place.difference())


RANKS = [
    Drill(64, "network cut between two hosts", cut_network, [4, 4], LOST, "failed", namespaces=True),
    Drill(
        66,
        "resumed on two ranks",
        more_ranks,
        [0, 0],
        ["resumed from step 6"],
        "done",
        "up to rounding, losses within .*",
    ),
    Drill(
        72,
        "port in use",
        busy_port,
        [4],
        ["could not join the process group at 127.0.0.1:", "the port is free"],
        "not started",
        "-",
    ),
    Drill(
        72,
        "no rank 0",
        alone,
        [4],
        ["rank 1 could not join the process group", "check that the address is right"],
        "not started",
        "-",
    ),
]
