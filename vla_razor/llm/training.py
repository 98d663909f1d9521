"""The four trainers, which are TRL's, with the paper's settings (RL's Razor, Table 2 and Section 5.1).

- SFT: cross-entropy on the answer's tokens.
- GRPO: the loss of Dr. GRPO with advantages r - mean of the group, and no KL penalty unless asked for.
- 1-0 REINFORCE: the same loss with the reward itself, 1 or 0, as the advantage.
- SimPO: -log sigmoid(log pi(chosen) - log pi(rejected) - margin). The paper sums log-probabilities over an answer's
  tokens; TRL averages them over its length, as the SimPO paper does. `log_probs` chooses.
"""

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # SimPO lives there

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainerCallback
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from vla_razor.devices import device_named
from vla_razor.errors import UserError
from vla_razor.llm.models import LanguageModel
from vla_razor.llm.tasks import Example, Task

SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine"}


class OneZero(GRPOTrainer):
    """GRPO without a baseline: a completion's advantage is its reward, 1 or 0."""

    def _calculate_rewards(self, *arguments: Any) -> Tensor:
        self._rewards: Tensor = super()._calculate_rewards(*arguments)
        return self._rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        # The rewards are those of all processes, the advantages those of this one.
        begin = self.accelerator.process_index * len(output["advantages"])
        output["advantages"] = self._rewards[begin : begin + len(output["advantages"]), 0].nan_to_num()
        return output


class SummedSimPO(CPOTrainer):
    """SimPO on summed log-probabilities, as the paper prints it."""

    @staticmethod
    def get_batch_logps(
        logits: Any, labels: Any, average_log_prob: bool = False, is_encoder_decoder: bool = False
    ) -> Any:
        return CPOTrainer.get_batch_logps(logits, labels, False, is_encoder_decoder)


def sft(
    language: LanguageModel,
    config: DictConfig,
    answers: Sequence[tuple[Example, str]],
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> SFTTrainer:
    """Ready to train on these answers."""
    rows = [
        {"prompt": example.messages, "completion": [{"role": "assistant", "content": answer}]}
        for example, answer in answers
    ]
    settings = SFTConfig(**_settings(config, folder), max_length=None, completion_only_loss=True, packing=False)
    return _built(SFTTrainer, settings, rows, language, config, callbacks)


def simpo(
    language: LanguageModel,
    config: DictConfig,
    pairs: Sequence[tuple[Example, str, str]],
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> CPOTrainer:
    """Ready to train on pairs of a right and a wrong answer."""
    rows = [
        {
            "prompt": example.messages,
            "chosen": [{"role": "assistant", "content": right}],
            "rejected": [{"role": "assistant", "content": wrong}],
        }
        for example, right, wrong in pairs
    ]
    settings = CPOConfig(
        **_settings(config, folder),
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=1.0,
        simpo_gamma=config.margin,
        max_length=None,
    )
    trainer = SummedSimPO if config.log_probs == "sum" else CPOTrainer
    return _built(trainer, settings, rows, language, config, callbacks)


def on_policy(
    language: LanguageModel,
    config: DictConfig,
    task: Task,
    examples: Sequence[Example],
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> GRPOTrainer:
    """Ready to train by GRPO, or by 1-0 REINFORCE where `config.verb` says so."""
    settings = GRPOConfig(
        **_settings(config, folder),
        num_generations=config.group_size,
        steps_per_generation=_accumulation(config),
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        num_iterations=config.num_iterations,
        beta=config.get("kl_coefficient", 0.0),
        loss_type="dr_grpo",
        scale_rewards="none",
        use_vllm=_use_vllm(config.use_vllm),
        vllm_mode="colocate",
    )
    trainer = OneZero if config.verb == "llm_reinforce" else GRPOTrainer
    rows = [{"prompt": example.messages, "gold": example.gold} for example in examples]

    def reward(completions: list[list[dict[str, str]]], gold: list[str], **_: Any) -> list[float]:
        return task.rewards([completion[-1]["content"] for completion in completions], gold)

    return _built(trainer, settings, rows, language, config, callbacks, reward_funcs=reward)


def count_on(trainer: Any, folder: Path) -> None:
    """A resumed trainer goes on counting the tokens that it has learned from where the one whose state is in `folder`
    had stopped: TRL keeps SFT's count in the trainer alone.
    """
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    counted = [row["num_tokens"] for row in history if "num_tokens" in row]
    if counted:
        trainer._total_train_tokens = int(counted[-1])


def check(config: DictConfig, count: int) -> None:
    """Raises UserError for settings with which `count` examples, or this machine, cannot train."""
    _accumulation(config)
    if "group_size" in config:
        _use_vllm(config.use_vllm)
        if count < config.prompts_per_step:
            raise UserError(f"prompts_per_step={config.prompts_per_step}: there are only {count} training prompts.")


def _built(
    kind: Any,
    settings: Any,
    rows: list[dict[str, Any]],
    language: LanguageModel,
    config: DictConfig,
    callbacks: Sequence[TrainerCallback],
    **more: Any,
) -> Any:
    """A trainer of this kind, made to compute the same on several devices as on one."""
    trainer = kind(
        args=settings,
        train_dataset=Dataset.from_list(rows),
        model=language.model,
        processing_class=language.tokenizer,
        callbacks=list(callbacks),
        peft_config=adapter(config) if config.lora_rank and not language.has_adapter else None,
        **more,
    )
    accelerator = trainer.accelerator
    # Autocast alone rounds. It need not keep the rounded weights, each of which is used once per pass.
    accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    if (plugin := getattr(accelerator.state, "fsdp_plugin", None)) is not None:
        # FSDP2 gathers weights and sums gradients in float32, where accelerate would have bfloat16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return trainer


def _settings(config: DictConfig, folder: Path) -> dict[str, Any]:
    """The settings of transformers' Trainer that all methods share. Our own callbacks save, log and draw the bar."""
    on_cpu = device_named(config.device).type == "cpu"
    return {
        "output_dir": str(folder),
        "seed": config.seed,
        "data_seed": config.seed,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES[config.schedule],
        "warmup_steps": config.warmup_steps,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "per_device_train_batch_size": min(config.micro_batch_size, _batch_size(config)),
        "gradient_accumulation_steps": _accumulation(config),
        "activation_checkpointing": config.gradient_checkpointing,
        "bf16": config.dtype == "bfloat16",
        "use_cpu": on_cpu,
        "save_strategy": "steps",
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
    }


def _batch_size(config: DictConfig) -> int:
    """Completions (for SimPO pairs) per optimizer step, over all processes."""
    return config.batch_size if "batch_size" in config else config.group_size * config.prompts_per_step


def _accumulation(config: DictConfig) -> int:
    """Micro-batches per step and process. Raises UserError where they do not divide the batch."""
    batch_size = _batch_size(config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    share = min(config.micro_batch_size, batch_size) * processes
    if batch_size % share:
        raise UserError(
            f"micro_batch_size={config.micro_batch_size} on each of {processes} devices does not divide a batch of "
            f"{batch_size}."
        )
    return batch_size // share


def adapter(config: DictConfig) -> Any:
    """A LoRA adapter of rank `config.lora_rank` on every linear layer but the output head."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _use_vllm(choice: str) -> bool:
    installed = find_spec("vllm") is not None
    if choice == "true" and not installed:
        raise UserError("use_vllm=true: vLLM is not installed; pip install vllm, or use_vllm=false.")
    return choice == "true" or (choice == "auto" and installed and torch.cuda.is_available())
