"""Serve the model, ask it through the official openai client, and let an 8-bit version of it take over."""

from __future__ import annotations

import sys
from typing import Any

import openai
import yaml
from shell import CLIENT, ROOT, condition, patch, remove, run, status, watch
from traffic import Traffic, pieces, python

NAME = "sdeploy/stdlib"


def serve() -> dict[str, Any]:
    """examples/deployment.yaml; its status once it answers."""
    remove(NAME)
    run(CLIENT, "apply", "-f", "examples/deployment.yaml")
    run("slipway", "wait", NAME, "--for=condition=Available", "--timeout=300s")
    found = status(NAME)
    client = openai.OpenAI(base_url=f"{found['url']}/v1", api_key="none is asked for")
    prompt = "import json\n\ndef "
    answer = client.completions.create(model="stdlib", prompt=prompt, max_tokens=24, temperature=0.7, seed=1)
    print(f"\n>>> client.completions.create(model='stdlib', prompt={prompt!r}, max_tokens=24, temperature=0.7, seed=1)")
    print(f"{prompt}{answer.choices[0].text}\n({answer.usage.completion_tokens if answer.usage else '?'} tokens)")
    return found


def in_words(now: dict[str, Any]) -> str:
    """How a rollout stands."""
    candidate = now.get("candidate")
    step = f", candidate {candidate['version']} at {candidate['weight']} %" if candidate else ""
    return f"{now.get('state')}: {now['stable']['version']} answers{step}"


def over(now: dict[str, Any], before: str) -> bool:
    """Whether the rollout is, one way or the other."""
    taken = now["stable"]["version"] != before and not now.get("candidate")
    return taken or condition(now, "Degraded").get("status") == "True"


def compress(found: dict[str, Any]) -> tuple[dict[str, Any], Traffic]:
    """Compress the model to 8 bits and roll that version out, under traffic; its status, and how the traffic fared."""
    example = yaml.safe_load((ROOT / "examples/deployment-compressed.yaml").read_text())
    before = found["stable"]["version"]
    with Traffic(found["url"], "stdlib", pieces(python(), seed=1), pause=0.8) as traffic:
        patch(NAME, {"compression": example["spec"]["compression"]})
        after = watch(NAME, in_words, lambda now: over(now, before), seconds=420)
    if after["stable"]["version"] == before:
        sys.exit(f"demo: the compressed version was not taken: {condition(after, 'Degraded').get('message')}")
    return after, traffic
