"""The verb that puts a policy behind a socket."""

from typing import Literal

from vla_razor.config import kinds as k
from vla_razor.config.keys import key
from vla_razor.config.robot import EMBEDDINGS, OnTasks


class Serve(OnTasks):
    """Serve a policy to robots and evaluators: openpi's WebSocket protocol, or vla-eval's."""

    env: k.Suite = key("pick_can", "the tasks: they say in which units the policy acts; nothing is simulated")
    protocol: Literal["openpi", "vla_eval"] = key("openpi", "what clients speak")
    host: k.Text = key("127.0.0.1", "address to listen on; 0.0.0.0: every one, for whoever reaches this machine")
    port: k.Port = key(8000, "to listen on; 0: any that is free")
    batch_size: k.Count = key(32, "in one forward pass at most: those of the clients that wait", "observations")
    max_clients: k.Count = key(64, "connected at once; further ones are told to come again", "clients")
    max_message: k.Positive = key(16.0, "of a message at most", "MiB")
    decision_timeout: k.Positive = key(60.0, "after which a client that waits for a decision is told so", "seconds")
    idle_timeout: k.Positive = key(600.0, "after which a silent client is dropped", "seconds")
    greedy: k.Switch = key(False, "take the likeliest tokens instead of sampling")
    embeddings: k.Text | None = key(None, EMBEDDINGS)
