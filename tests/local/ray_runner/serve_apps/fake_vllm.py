"""A version as slipway_serving.vllm.app makes it, before a server that streams as ray.serve.llm's does: no vLLM."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from ray import serve

from slipway_serving.vllm.app import VllmDeployment


@serve.deployment(name="LLMServer:v-1", ray_actor_options={"num_cpus": 0})
class Server:
    """Says the last message again, a word with each event; two events come at a time."""

    async def chat(self, request: dict[str, Any], raw_request_info: Any = None) -> AsyncIterator[list[str]]:
        words = request["messages"][-1]["content"].split()
        events = []
        for number, word in enumerate(words, start=1):
            choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None, "logprobs": None}
            if number == len(words):
                choice["finish_reason"] = "stop"
            usage = {"prompt_tokens": 7, "completion_tokens": number}
            events.append(f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n")
        for at in range(0, len(events), 2):
            yield events[at : at + 2]
        yield ["data: [DONE]\n\n"]


def engine(args: dict[str, Any]) -> Any:
    return VllmDeployment.bind("v-1", Server.bind(), {"chat": dict, "completions": dict})
