"""What a language model learns in float32 and in bfloat16: its loss at learning rates of 1e-6, 1e-5 and 1e-4.

The same steps of SFT, on the same batches, through the trainer of `vla-razor llm sft`, with all weights or with an
adapter. The two precisions are to end within 2% of each other; the share of the weights that changed stands beside.

    python scripts/bench/precision_llm.py --data DIR [--model smollm] [--steps 200] [--rank 0] [--json]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PrinterCallback

from vla_razor.config import compose
from vla_razor.llm import tasks, training
from vla_razor.llm.models import open_model

RATES = ("1e-6", "1e-5", "1e-4")
PRECISIONS = ("float32", "bfloat16")
TARGET = 0.02
AVERAGED = 10
"""Last steps whose losses are averaged: each is of another batch."""


def learn(arguments: argparse.Namespace, rate: str, dtype: str) -> dict[str, float]:
    """The mean losses of the first and the last ten steps, and the share of the parameters that learned and changed."""
    words = [f"model={arguments.model}", f"task={arguments.task}", f"data_dir={arguments.data}", "direct=true"]
    words += [f"dtype={dtype}", f"learning_rate={rate}", f"lora_rank={arguments.rank}", "device=auto", "warmup_steps=0"]
    words += [f"batch_size={arguments.batch_size}", f"micro_batch_size={arguments.batch_size}", "epochs=100"]
    config = compose("llm_sft", [*words, f"max_steps={arguments.steps}", "gradient_checkpointing=false"])
    language = open_model(config.model, device=config.device, dtype=dtype, learning=not arguments.rank)
    examples = tasks.open_task(config.task).load(Path(config.data_dir), direct=True).train
    with tempfile.TemporaryDirectory() as folder:
        answers = [(example, example.answer) for example in tasks.subset(examples, arguments.examples)]
        trainer: Any = training.sft(language, config, answers, Path(folder), [])
        trainer.remove_callback(PrinterCallback)
        trainer.args.save_strategy = "no"
        learning = [(p, p.detach().clone()) for p in trainer.model.parameters() if p.requires_grad]
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    changed = sum(int((after != before).sum()) for after, before in learning)
    return {
        "before": sum(losses[:AVERAGED]) / AVERAGED,
        "after": sum(losses[-AVERAGED:]) / AVERAGED,
        "changed": changed / sum(before.numel() for _, before in learning),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of local data sets")
    parser.add_argument("--model", default="smollm")
    parser.add_argument("--task", default="science")
    parser.add_argument("--examples", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=0, help="of an adapter; 0 for all weights")
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    arguments = parser.parse_args()
    found = {rate: {dtype: learn(arguments, rate, dtype) for dtype in PRECISIONS} for rate in RATES}
    table = Table("learning rate", "at first", *PRECISIONS, "apart", "changed", title=f"Loss, {arguments.steps} steps")
    apart = {}
    for rate, row in found.items():
        one, other = (row[dtype]["after"] for dtype in PRECISIONS)
        apart[rate] = abs(other / one - 1)
        shares = ", ".join(f"{row[dtype]['changed']:.1%}" for dtype in PRECISIONS)
        table.add_row(
            rate, f"{row['float32']['before']:.4f}", f"{one:.4f}", f"{other:.4f}", f"{apart[rate]:.2%}", shares
        )
    Console().print(table)
    ok = all(value <= TARGET for value in apart.values())
    print(f"within {TARGET:.0%} of each other: {'yes' if ok else 'no'}")
    if arguments.json:
        print(json.dumps({"rates": found, "apart": apart, "ok": ok}))


if __name__ == "__main__":
    main()
