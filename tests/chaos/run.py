"""Runs rounds until each database has had its kills, and keeps a ledger, so that a long run can be stopped."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tests.chaos.node import take_in_orphans
from tests.chaos.steps import STEPS
from tests.chaos.storm import ANY_VICTIM, Plan, Round, Storm
from tests.postgres import DATABASES, NO_SERVER, postgres_server, programs

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

REAL_EVERY = 10
"""One round in so many, and with it one study in so many, has the node's own detector."""
ENOUGH_HITS = 20


@dataclass
class Tally:
    """The ledger of one database; ``hits`` counts kills by step and victim, written ``step/victim``."""

    rounds: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    studies: int = 0
    with_real_detector: int = 0
    reports: int = 0
    again: int = 0
    revised: int = 0
    forgotten: int = 0
    outages: int = 0
    starts: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    other: int = 0
    broken: dict[str, list[str]] = field(default_factory=dict)

    @property
    def killed(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def hits_of(self, step: str) -> int:
        """Kills that found a study at a step."""
        return sum(count for key, count in self.hits.items() if key.split("/")[0] == step)

    def add(self, done: Round, cpu_s: float) -> None:
        """Count a round in."""
        verdict = done.verdict
        self.rounds += 1
        self.kills = dict(Counter(self.kills) + Counter(kill.victim for kill in done.kills))
        found = Counter(f"{step}/{kill.victim}" for kill in done.kills for step in kill.steps)
        self.hits = dict(Counter(self.hits) + found)
        self.with_real_detector += verdict.studies if done.plan.real else 0
        self.outages += done.outages
        self.starts += done.starts
        self.seconds += done.seconds
        self.cpu_s += cpu_s
        for name in ("studies", "reports", "again", "revised", "forgotten"):
            setattr(self, name, getattr(self, name) + getattr(verdict, name))
        for name in ("lost", "doubled", "different", "other"):
            setattr(self, name, getattr(self, name) + len(getattr(verdict, name)))
        if verdict.faults:
            self.broken[str(done.plan.seed)] = verdict.faults

    def wants_more(self, kills: int, hits: int) -> bool:
        """Whether there have been too few kills, or too few at some step."""
        return self.killed < kills or min(map(self.hits_of, STEPS)) < hits

    def line(self) -> str:
        """Give the ledger in a line."""
        return (
            f"{self.rounds} rounds, {self.killed} kills (fewest at a step: {min(map(self.hits_of, STEPS))}); "
            f"{self.studies} studies in, {self.reports} reports in the archive, {self.lost} lost, "
            f"{self.doubled} doubled, {self.different} different, {self.other} other faults; {self.seconds:.0f} s"
        )


def table(tallies: dict[str, Tally]) -> str:
    """The ledger for people, in Markdown."""
    names = list(tallies)
    rows = {
        "rounds": "rounds",
        "SIGKILLs": "killed",
        "starts of the node": "starts",
        "archive away": "outages",
        "studies in": "studies",
        "of these with the node's own detector": "with_real_detector",
        "reports in the archive": "reports",
        "of these forgotten by it once": "forgotten",
        "sent again, the same bytes": "again",
        "studies with a second report": "revised",
        "**lost**": "lost",
        "**doubled**": "doubled",
        "**different**": "different",
        "other faults": "other",
        "seconds": "seconds",
        "processor seconds": "cpu_s",
    }
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [
        f"| {text} | {' | '.join(f'{getattr(tallies[name], key):.0f}' for name in names)} |"
        for text, key in rows.items()
    ]
    for name, tally in tallies.items():
        lines += ["", f"Kills by step, {name}:", "", f"| step | {' | '.join(ANY_VICTIM)} | all |"]
        lines.append(f"|---|{'---|' * (len(ANY_VICTIM) + 1)}")
        for step in STEPS:
            cells = [str(tally.hits.get(f"{step}/{victim}", 0)) for victim in ANY_VICTIM]
            lines.append(f"| {step} | {' | '.join(cells)} | {tally.hits_of(step)} |")
        cells = [str(tally.kills.get(victim, 0)) for victim in ANY_VICTIM]
        lines.append(f"| any | {' | '.join(cells)} | {tally.killed} |")
    return "\n".join(lines)


def main() -> int:
    """Be the command; 1 when anything was lost, doubled or different."""
    arguments = _arguments()
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    take_in_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped; the round under way does not count."))
    databases = DATABASES if arguments.database == "both" else (arguments.database,)
    if "postgresql" in databases and programs() is None:
        print(NO_SERVER)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server()) if "postgresql" in databases else None
        tallies = _rounds(arguments, databases, server)
    print(table(tallies))
    return 1 if any(tally.broken for tally in tallies.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--database", choices=[*DATABASES, "both"], default="both")
    parser.add_argument("--kills", type=int, default=500, help="for each database; an earlier run counts")
    parser.add_argument("--hits", type=int, default=ENOUGH_HITS, help="kills at each step, at least")
    parser.add_argument("--out", type=Path, default=Path("chaos-out"), help="ledgers, and what is left of failures")
    parser.add_argument("--seed", type=int, help="run this one round alone, and count it nowhere")
    parser.add_argument("--studies", type=int, default=10, help="in a round")
    parser.add_argument("--kills-in-a-round", type=int, default=14)
    parser.add_argument("--real", type=int, default=REAL_EVERY, help="one round in so many has the real detector")
    return parser.parse_args()


def _rounds(
    arguments: argparse.Namespace, databases: tuple[str, ...], server: PostgresServer | None
) -> dict[str, Tally]:
    """Run round after round, the databases in turn."""
    single = arguments.seed is not None
    tallies = {name: Tally() if single else _read(arguments.out, name) for name in databases}
    behind = list(databases)
    while behind:
        for name in behind:
            tally = tallies[name]
            seed = arguments.seed if single else tally.rounds
            plan = Plan(
                name,
                seed,
                studies=arguments.studies,
                kills=min(arguments.kills_in_a_round, arguments.kills),
                real=bool(arguments.real) and seed % arguments.real == arguments.real - 1,
            )
            _one(plan, tally, arguments.out, server.new_database() if name == "postgresql" and server else "")
            if not single:
                _keep(arguments.out, name, tally)
            print(f"{name}: {tally.line()}", flush=True)
        behind = [] if single else [n for n in databases if tallies[n].wants_more(arguments.kills, arguments.hits)]
    return tallies


def _one(plan: Plan, tally: Tally, out: Path, database_url: str) -> None:
    """Run one round; its folder stays where something is wrong."""
    folder = Path(tempfile.mkdtemp(prefix=f"{plan.database}-{plan.seed}-", dir=out.resolve()))
    before = _cpu_s()
    hits = {step: tally.hits_of(step) for step in STEPS}
    try:
        done = Storm(plan, folder / "node", database_url, hits, tally.kills).live()
    except (SystemExit, KeyboardInterrupt):
        shutil.rmtree(folder)
        raise
    tally.add(done, _cpu_s() - before)
    if done.verdict.faults:
        print(f"Round {plan.seed} on {plan.database}, kept in {folder}:", *done.verdict.faults, sep="\n  ")
        print(f"  Again: python -m tests.chaos --database {plan.database} --seed {plan.seed}", flush=True)
    else:
        shutil.rmtree(folder)


def _cpu_s() -> float:
    """Processor time of this process and of all that it has reaped."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _read(out: Path, database: str) -> Tally:
    file = out / f"{database}.json"
    return Tally(**json.loads(file.read_text())) if file.exists() else Tally()


def _keep(out: Path, database: str, tally: Tally) -> None:
    aside = out / f"{database}.part"
    aside.write_text(json.dumps(asdict(tally), indent=1, sort_keys=True))
    aside.replace(out / f"{database}.json")
