"""`make demo`: the life of a language model on this machine, printed as you would type it.

    slipway up → apply → watch it train (FSDP, 2 workers) → look at the model → evaluate it against an untrained one,
    which fails at the gate that it passes → one DeepSpeed ZeRO-3 run of a few steps → serve it → compress it, and let
    the compressed version take over under traffic → the traffic turns from Python to C and English → drift is found, a
    retrain runs, its model is evaluated on old and new data, and takes over

The input is real: the source code of this Python's standard library, with some modules held out; C headers and the
texts of `help()` for the traffic that turns. Nothing is faked or cached between runs but tokens (by content digest) and
DeepSpeed's compiled extension. Ends 1 when a promise is not kept.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from endpoint import NAME, compress, serve
from renewal import renew
from shell import CLIENT, STARTED, condition, finish, kubeconfig, remove, run, status, table

JOB, ZERO = "stdlib-lm", "stdlib-zero3"
UNTRAINED = "stdlib-untrained"
EVALUATION, UNTRAINED_EVALUATION = "stdlib-eval", "stdlib-untrained-eval"
IMPROVEMENT = 10  # held-out perplexity must fall by this factor


def main() -> int:
    """The demo; the exit status."""
    run("slipway", "up")
    ready = time.monotonic() - STARTED
    remove(NAME)  # of an earlier demo: what serves has CPUs that training needs
    broken = train_and_evaluate(ready)
    broken += serve_and_renew()
    took = time.monotonic() - STARTED
    table([("kubeconfig", kubeconfig()), ("the whole demo took", f"{took:.0f} s")])
    print("\nIt is still running: slipway status, slipway chat sdeploy/stdlib, slipway down")
    for promise in broken:
        print(f"FAILED: {promise}", file=sys.stderr)
    return 1 if broken else 0


def train_and_evaluate(ready: float) -> list[str]:
    """The first half; which promises it broke."""
    trained = finish([f"tj/{JOB}"], "examples/trainjob.yaml")
    run(CLIENT, "get", "tj")
    run("slipway", "generate", f"tj/{JOB}", "--prompt", "def __init__(self, ", "--max-new-tokens", "48")
    ours = finish([f"tj/{UNTRAINED}", f"ej/{EVALUATION}"], "examples/evaljob.yaml")
    theirs = finish([f"ej/{UNTRAINED_EVALUATION}"], "examples/evaljob-untrained.yaml")
    run(CLIENT, "get", "ej")
    zero = finish([f"tj/{ZERO}"], "examples/trainjob-zero3.yaml")

    model, plan, zero_plan = trained["model"], trained["plan"], zero["plan"]
    before, after = float(model["initialPerplexity"]), float(model["perplexity"])
    table(
        [
            ("held-out perplexity", f"{before:,.0f} before, {after:,.1f} after ({before / after:,.0f}x lower)"),
            ("and evaluated", in_words(score(ours, "held-out"))),
            ("the untrained model's", in_words(score(theirs, "held-out"))),
            ("the gate, trained", "passed" if verdict(ours)[0] == "True" else f"failed: {verdict(ours)[1]}"),
            ("the gate, untrained", "passed" if verdict(theirs)[0] == "True" else f"failed: {verdict(theirs)[1]}"),
            ("throughput", f"{trained['progress']['tokensPerSecond']:,} tokens/s"),
            ("strategy", f"{plan['strategy']}: {plan['parametersPerRank']:,} of {plan['parameters']:,} per rank"),
            ("and with DeepSpeed", f"{zero_plan['strategy']}: {zero_plan['parametersPerRank']:,} per rank"),
            ("training data", f"{plan['trainTokens']:,} tokens, {plan['dataDigest']}"),
            ("model", model["uri"]),
            ("report", f"{ours['results']['uri']}/report.html"),
            ("log", f"{trained['storage']}/logs"),
            ("control plane ready after", f"{ready:.0f} s"),
            ("trained and evaluated after", f"{time.monotonic() - STARTED:.0f} s"),
        ]
    )
    broken = []
    if before / after < IMPROVEMENT:
        broken.append(f"the held-out perplexity fell by less than {IMPROVEMENT}x")
    if (verdict(ours)[0], verdict(theirs)[0]) != ("True", "False"):
        broken.append("the gate must pass the trained model and stop the untrained one")
    return broken


def serve_and_renew() -> list[str]:
    """The second half; which promises it broke."""
    served = serve()
    compressed, rollout = compress(served)
    run(CLIENT, "get", "sdeploy")
    served_after = time.monotonic() - STARTED
    alarm, retrain, _ = renew(served["url"])
    run("slipway", "lineage", NAME)

    result = compressed["stable"]["compression"]
    dense, small = result["before"], result["after"]
    measured = status(f"ej/{retrain['id']}")
    table(
        [
            ("compressed", f"{result['scheme']}, runs as {result['execution']}"),
            ("memory of the weights", in_mib(dense["memoryBytes"], small["memoryBytes"])),
            (
                "perplexity, compressed",
                f"{dense['perplexity']} before, {small['perplexity']} after",
            ),
            ("tokens/s, compressed", f"{result['speedUp']}x"),
            ("requests in that rollout", f"{rollout.answered} answered, {len(rollout.failed)} failed"),
            ("served and compressed after", f"{served_after:.0f} s"),
            ("drift", f"{alarm['signal']} by {alarm['test']}, effect {alarm['effect']} over {alarm['threshold']}"),
            ("retrained", f"{retrain['stage']}: {retrain.get('message', '')}"),
            ("perplexity of new traffic", change(score(measured, "new"))),
            ("perplexity of old data", change(score(measured, "old"))),
        ]
    )
    broken = []
    if rollout.failed:
        broken.append(f"no request may fail in a rollout: {rollout.failed[0]}")
    if retrain["stage"] != "Promoted":
        broken.append(f"the retrain ended as {retrain['stage']}: {retrain.get('message')}")
    return broken


# --- words --------------------------------------------------------------------------------------------------------


def score(measured: dict[str, Any], suite: str) -> dict[str, Any]:
    """The perplexity of an EvalJob's suite, over all documents."""
    found: dict[str, Any] = next(
        one
        for one in measured["metrics"]
        if (one["suite"], one["metric"], one.get("slice", "")) == (suite, "perplexity", "")
    )
    return found


def in_words(measured: dict[str, Any]) -> str:
    """A score with its interval."""
    interval = next(one for one in measured["intervals"] if one["confidence"] == "0.95")
    return f"{float(measured['value']):,.1f} (95%: {float(interval['low']):,.1f} to {float(interval['high']):,.1f})"


def change(measured: dict[str, Any]) -> str:
    """A score and the baseline's."""
    return f"{float(measured['baseline']['value']):,.1f} before, {float(measured['value']):,.1f} after"


def in_mib(before: int, after: int) -> str:
    """Bytes, before and after."""
    return f"{before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after"


def verdict(measured: dict[str, Any]) -> tuple[str, str]:
    """Status and message of the condition Passed."""
    found = condition(measured, "Passed")
    return found["status"], found["message"]


if __name__ == "__main__":
    sys.exit(main())
