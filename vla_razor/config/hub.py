"""The verbs that give a tuned policy to others."""

from vla_razor.config import kinds as k
from vla_razor.config.keys import Computing, key


class Save(Computing):
    """Write a tuned policy to be given away, with a card that says what it learned and forgot: `save RUN --out DIR`."""

    policy: k.Text | None = key(None, "a run, or a checkpoint in it, as RUN is")
    base: k.Text | None = key(None, "the policy before fine-tuning; null: what the run started from")
    base_name: k.Text | None = key(None, "what the card and an adapter call the base, as its id on the Hub; null: base")
    card: k.Switch = key(True, "write README.md, the model card")
    license: k.Text | None = key(None, "of the policy, as the Hub abbreviates it; null: the base's")
    merge: k.Switch = key(False, "add an adapter to the weights that it adapts, if that moves no decision")
    merge_tolerance: k.Positive = key(
        1e-3, "by which merging may move the policy: forward KL to what it was, a token", "nats"
    )
    dtype: k.Precision = key("float32", "of merged weights")
    oft: k.Mapping | None = key(None, "open it as discrete OpenVLA-OFT, as in {chunk: 8}; null: as it says it is")
    logger: k.Logger = "none"


class Push(Save):
    """As `save`, and upload it to the Hugging Face Hub: `push RUN OWNER/NAME`."""

    repo: k.Text | None = key(None, "on the Hub, as OWNER/NAME is")
    private: k.Switch = key(True, "a repository that is made for it is seen by its owner alone")
