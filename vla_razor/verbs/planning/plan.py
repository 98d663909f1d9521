"""`dry_run=true`: what a training run would take, computed from the model's configuration; nothing is started.

The model is built on torch's meta device, adapters included. One update of a micro-batch, one rollout step and the
optimizer's state are measured on it (`footprint.py`). What is assumed instead of computed is a constant there or below,
and is printed with the plan.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import torch
from huggingface_hub import hf_hub_download
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vla_razor.config import common_keys, compose, robot_of, scenes, suite_in
from vla_razor.devices import CARDS, Card
from vla_razor.errors import UserError
from vla_razor.policies.load import TINY, family_of
from vla_razor.policies.members import factory_of
from vla_razor.policies.openvla import OpenVLA, Processor, checkpoint, decoder, lora
from vla_razor.policies.openvla.prismatic import PrismaticVLA, on_meta, read_by_products
from vla_razor.policies.openvla.tiny import preprocessor_settings
from vla_razor.rollouts.demonstrations import FOLDER
from vla_razor.rollouts.starts import parse_grid
from vla_razor.runs import checkpoint_folder
from vla_razor.training.algorithms import reinforce
from vla_razor.training.algorithms.sft import replayed_per_batch
from vla_razor.training.base import products_of
from vla_razor.verbs.planning.footprint import (
    OVERHEAD,
    UTILIZATION,
    Footprint,
    Line,
    bytes_of,
    card_named,
    flops_of,
    give_gradients,
    operations_of,
    peak_of,
    size_text,
    time_text,
)
from vla_razor.verbs.study.robot import Robot, verb_of
from vla_razor.verbs.study.robot_sequence import METHODS, RobotSequence

PROMPT_TOKENS = 20
"""Of a prompt such as "pick coke can" in Llama's tokenizer, for a checkpoint whose own is not at hand."""
SIMULATOR = {"panda": 130.0, "google_robot": 6.6, "simpler_env": 2.9}
"""Control steps per second of one process on one core, rendering included: 64 x 64 pixels, and 512 x 640. The latter
two are of pick can in the table of docs/simplerenv.md: two processes together make 13.2 of ours and 5.9 of the
original.
"""
DEMONSTRATED = {"panda": 10, "google_robot": 19, "simpler_env": 19}
"""Control steps of the scripted expert's demonstrations of pick can, assumed where there are none yet: a mean of 10.0
over a 3x3 grid of the Panda, of 19.0 over the thousand of docs/simplerenv.md.
"""
KNOWN: dict[str, dict[str, Any]] = {
    "openvla/openvla-7b": {
        "model_type": "openvla",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064},
    }
}
"""The shape that a public checkpoint's `config.json` states, so that the Hub need not be asked."""


@dataclass(frozen=True)
class PolicyFootprint(Footprint):
    """What a policy takes. `rollout` is the peak memory of a decision, KV cache included, by number of environments;
    `cache` is the KV cache of one environment; `forward_flop` are the operations of an update's forward passes. A state
    is one image, prompt and action.
    """

    rollout: Line
    cache: float
    decision_flop: float
    forward_flop: float
    tokens: int

    def most_environments(self, memory: float) -> int:
        """How many environments' decisions fit, in one batch, into `memory` bytes of a GPU; 0 where none does."""
        free = memory - OVERHEAD - self.held()
        return max(int((free - self.rollout.fixed) // self.rollout.each), 0)


def show(config: DictConfig) -> None:
    """Print the plan of a training verb's configuration. Raises `UserError` for a bad one, as the run itself would."""
    console = Console()
    if config.verb == "mnist":
        from vla_razor.parity_mnist import model
        from vla_razor.verbs.study import mnist

        runs = mnist.runs_of(config)
        count = sum(value.numel() for value in model.initialize(1, torch.Generator()).values())
        console.print(f"mnist: {len(runs)} models of about {count:,} parameters, all trainable", highlight=False)
    elif config.verb == "sequence":
        _show_sequence(console, config)
    elif "axes" in config:  # of the runs of a study, the first of each verb
        common = {key: config[key] for key in (*common_keys(config.verb), "env", "prior", "collect")}
        firsts: dict[str, DictConfig] = {}
        for training in Robot(config, Path(config.out)).plan():
            verb = verb_of(training.method)
            settings = {**common, **config[verb], **training.changes, "seed": training.seed, "verb": verb}
            firsts.setdefault(verb, OmegaConf.create(settings))
        for part in firsts.values():
            _show(console, part)
    else:
        _show(console, config)
    console.print("Nothing was started.", highlight=False)


def footprint(model: PrismaticVLA, config: DictConfig) -> PolicyFootprint:
    """Of `model`, on the meta device and with its adapters, trained with `config`."""
    learning = [parameter for group in model.parameter_groups(config) for parameter in group["params"]]
    gradients, weights = bytes_of(learning), bytes_of(model.parameters())
    give_gradients(learning)

    def update(batch: int) -> Callable[[], None]:  # one micro-batch forward and backward
        return lambda: torch.log_softmax(_logits(model, batch), -1).sum().backward()

    @torch.no_grad()
    def forward() -> None:
        _logits(model, 1)

    one, three = (peak_of(model, update(batch), model.products) for batch in (1, 3))
    few, many = (peak_of(model, _decision(model, batch), model.products) for batch in (1, 3))
    # The base's copy does not learn, and is stored in the dtype that products read.
    kind, base = model.products or model.dtype, 0
    if not config.lora_rank:  # with an adapter the base is the same weights
        rounded = read_by_products(model)
        base = sum(p.numel() * (kind if n in rounded else p.dtype).itemsize for n, p in model.named_parameters())
    prompt = model.vision_backbone.num_patches + len(_prompts(model, 1)[0])
    prompt += model.config.trailing_token_id is not None
    # An autoregressive model takes this many decoding steps after the prompt, and caches their keys and values.
    llama, steps = model.language_model.config, model.num_tokens - 1
    width: int = llama.num_key_value_heads * llama.hidden_size // llama.num_attention_heads  # pyright: ignore
    cache = 2.0 * llama.num_hidden_layers * width * (prompt + steps) * kind.itemsize
    after = steps * 2.0 * sum(p.numel() for p in model.language_model.parameters())
    return PolicyFootprint(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in learning),
        weights=weights,
        base=float(base),
        gradients=gradients,
        optimizer=2 * gradients,
        scratch=0.0 if card_named(config.device) is None else gradients,
        gathered=0.0,
        activations=Line.through(one, three),
        update_flop=operations_of(update(1), model.products),
        rollout=Line.through(few, many),
        cache=model.autoregressive * cache,
        decision_flop=operations_of(_decision(model, 1), model.products) + model.autoregressive * after,
        forward_flop=operations_of(forward, model.products),
        tokens=prompt + model.num_tokens,
    )


def model_of(config: DictConfig) -> PrismaticVLA:
    """The model that a run would train, adapters included, on the meta device. Raises UserError for a policy from
    outside, whose size is not known.
    """
    if factory_of(str(config.policy)):
        raise UserError(f"policy={config.policy}: dry_run knows what OpenVLA and OpenVLA-OFT take, not what this does.")
    raw, processor = _described(str(config.policy))
    raw = {**raw, **(config.oft or {})}
    family = family_of(raw)
    settings = family.config_class.from_dict(raw, str(config.policy))
    model = on_meta(family, settings, processor or Processor(preprocessor_settings(settings.image_sizes[0])))
    products = products_of(config)
    model.cast(torch.float32, products if config.lora_rank else None)
    model.products = products
    model.gradient_checkpointing(config.gradient_checkpointing)
    if config.lora_rank:
        depths = [len(stack.blocks) for stack in model.vision_backbone.stacks]
        lora.add(model, lora.configuration(config.lora_rank, config.lora_alpha, depths))
    return model


def _described(policy: str) -> tuple[dict[str, Any], Processor | None]:
    """A checkpoint's `config.json`, and its processor if its folder is local. Nothing large is downloaded."""
    folder = TINY if policy in ("tiny", "vla") else checkpoint_folder(Path(policy))
    if folder is not None and (folder / lora.ADAPTER_CONFIG_FILE).is_file():
        return _described(str(lora.read_config(folder).base_model_name_or_path))
    if folder is not None:
        raw = checkpoint.read_json(folder / checkpoint.CONFIG_FILE)
        return raw, Processor.from_folder(folder, raw.get("text_config", {}).get("bos_token_id", 1))
    if policy in KNOWN:
        return KNOWN[policy], None
    try:
        return checkpoint.read_json(Path(hf_hub_download(policy, checkpoint.CONFIG_FILE))), None
    except Exception as error:  # the Hub's client raises many kinds
        raise UserError(f"{policy}: no such checkpoint folder, and the Hub did not give its config.json.") from error


def _logits(model: PrismaticVLA, batch: int) -> Tensor:
    tokens = torch.zeros(batch, model.num_tokens, dtype=torch.long)
    return model.action_logits(_pixels(model, batch), _prompts(model, batch), tokens)


def _decision(model: PrismaticVLA, batch: int) -> Callable[[], None]:
    """One decision without the decoding steps after the prompt, if there are any; the KV cache has its full length."""
    llama, more = model.language_model.model, model.num_tokens - 1

    @torch.no_grad()
    def decide() -> None:
        if not isinstance(model, OpenVLA):
            _logits(model, batch)
            return
        embeddings, lengths = model._prompt(_pixels(model, batch), _prompts(model, batch))
        length = embeddings.shape[1]
        table = decoder.rotary_table(llama, embeddings, length + more)
        cache = decoder.Cache(length + more)
        model.action_head(decoder.prefill(llama, embeddings, table, lengths[:, None] - 1, cache=cache))

    return decide


def _pixels(model: PrismaticVLA, batch: int) -> Tensor:
    size, stacks = model.config.image_sizes[0], len(model.config.image_sizes)
    return torch.empty(batch, 3 * stacks, size, size, device="meta")


def _prompts(model: PrismaticVLA, batch: int) -> list[list[int]]:
    tokenizer = model.processor.tokenizer
    ids = [1] * PROMPT_TOKENS if tokenizer is None else model.processor.prompt_ids(["pick coke can"])[0]
    return [ids] * batch


@dataclass(frozen=True)
class Work:
    """The work of a step (SFT) or an iteration (REINFORCE, distillation): at most how many control steps are simulated
    and states learnt from. `steps` is how many a run makes, and `assumed` what this assumes about demonstrations that
    do not exist yet.
    """

    simulated: int
    learnt: int
    steps: int | None
    assumed: str = ""


def work_of(config: DictConfig) -> Work:
    """The work of a configuration of sft, rl or distill."""
    if config.verb != "sft":
        most = reinforce.episodes_of(config) * horizon_of(config.env)
        learnt = config.updates * config.batch_size if config.verb == "distill" else most
        return Work(most, learnt, config.iterations)
    states, assumed = _demonstrated(config)
    new = config.batch_size - replayed_per_batch(config)
    # An epoch is one pass over the new task; the replayed part of a batch does not make it longer.
    return Work(0, config.batch_size, config.epochs * -(-states // new), assumed)


def learning_flop(config: DictConfig, takes: PolicyFootprint) -> float:
    """FLOP per state learnt from, with all penalties except a user's own. Each penalty has a forward pass of the base
    and the passes of an update; REINFORCE's KL shares the latter with its loss. Spillover adds a decision of the base.
    Replay needs the passes of an update alone.
    """
    flop, both = takes.update_flop, takes.forward_flop + takes.update_flop
    if config.spillover_coefficient:
        flop += both + takes.decision_flop
    if config.replay_coefficient:
        flop += takes.update_flop
    if config.kl_coefficient:
        flop += takes.forward_flop if config.verb == "rl" else both
    return flop


def horizon_of(env: DictConfig) -> int:
    """The control steps of a full episode, from the suite's file or the environments' setup record."""
    if suite := suite_in(scenes(env)[0].make):
        return suite["horizon"]
    spec = gymnasium.spec(scenes(env)[0].id)
    module = importlib.import_module(str(spec.entry_point).partition(":")[0])
    return module.find_setup(spec.kwargs["family"], robot_of(env)).horizon


def simulator_seconds(config: DictConfig, work: Work, card: Card | None) -> float | None:
    """Seconds that a step or iteration simulates, in processes on a CPU. None where the simulator runs on the GPU
    (sim_backend=gpu), whose speed is not known; SimplerEnv itself always runs in processes.
    """
    make = scenes(config.env)[0].make
    if suite_in(make):
        return None
    simulator = make.get("robot", "simpler_env")
    if work.simulated and card and simulator != "simpler_env" and make.get("device") == "cuda":
        return None
    return work.simulated / (SIMULATOR[simulator] * config.num_workers)


def _demonstrated(config: DictConfig) -> tuple[int, str]:
    """The number of states in `config.demos`. Where there are none yet, it is that of the demonstrations `collect`
    would make, and a sentence says so.
    """
    total = 0
    for path in sorted((Path(config.demos) / FOLDER).glob("*.h5")) if config.demos else ():
        with h5py.File(path) as file:
            total += sum(len(group["success"]) for group in file.values())  # pyright: ignore
    if total:
        return total, ""
    collect = config.get("collect") or compose("collect")
    columns, rows = parse_grid(collect.grid)
    count = columns * rows * collect.per_point * (1 if config.env.grid else len(config.env.tasks))
    make = scenes(config.env)[0].make
    each = horizon_of(config.env) if suite_in(make) else DEMONSTRATED[make.get("robot", "simpler_env")]
    place = f"{config.demos} holds no demonstrations" if config.demos else "no demonstrations are given"
    return count * each, f"{place}: {count:,} of {each} states are assumed, as many as collect would make"


def _show_sequence(console: Console, config: DictConfig) -> None:
    """The first stage of each method's verb, then all sequences together. Not counted is what is learned again."""
    sequence, card = RobotSequence(config, Path(config.out)), card_named(config.device)
    trainings, takes, learning = sequence.plan(), dict[str, PolicyFootprint](), list[float | None]()
    common = {key: config[key] for key in (*common_keys(config.verb), "prior", "collect")}
    for training, task in product(trainings, sequence.tasks):
        verb = METHODS[training.method]
        changes = {key: value for key, value in training.changes.items() if key in config[verb]}
        own = {"env": sequence.scene(task), "seed": training.seed, "verb": verb}
        part = OmegaConf.create({**common, **config[verb], **changes, **own})
        if verb not in takes:
            takes[verb] = _show(console, part)
        work = work_of(part)
        policy, simulator = seconds_of(part, takes[verb], work, card)
        learning.append(None if simulator is None else (policy + simulator) * (work.steps or 0))
    stages, (any_takes, *_) = len(trainings) * len(sequence.tasks), takes.values()
    # The base is evaluated once, and each policy after its stage; an episode goes on to its horizon.
    tasks = len(sequence.tasks) + len(sequence.prior)
    episodes = (1 + stages) * config.eval.episodes * tasks
    steps = episodes * max(horizon_of(scene) for scene in scenes(config.env))
    played = OmegaConf.create({**common, "env": sequence.scene(sequence.tasks[0])})
    policy, simulator = seconds_of(played, any_takes, Work(steps, 0, None), card)
    console.print(
        f"{len(trainings)} sequences of {len(sequence.tasks)} tasks: {stages:,} trainings; {episodes:,} episodes of "
        f"evaluation, at most {steps:,} simulator steps",
        highlight=False,
    )
    if simulator is None or None in learning:
        console.print("their time is not known, because the simulator's is not", highlight=False)
    else:
        learned, evaluated = sum(filter(None, learning)), policy + simulator
        console.print(
            f"all of it: {time_text(learned)} of learning, {time_text(evaluated)} of evaluation, without "
            "demonstrations, probe sets and what is learned again",
            highlight=False,
        )


def seconds_of(config: DictConfig, takes: PolicyFootprint, work: Work, card: Card | None) -> tuple[float, float | None]:
    """What the model and the simulator take for a step's or iteration's work; None where the latter is not known."""
    flop = work.simulated * takes.decision_flop
    if work.learnt:
        flop += work.learnt * learning_flop(config, takes)
    return flop / (UTILIZATION * flops_of(card)), simulator_seconds(config, work, card)


def _show(console: Console, config: DictConfig) -> PolicyFootprint:
    model, card, work = model_of(config), card_named(config.device), work_of(config)
    takes = footprint(model, config)
    console.print(_sizes(config, takes))
    if work.assumed:
        console.print(work.assumed, highlight=False)
    rate = UTILIZATION * flops_of(card)
    policy, simulator = seconds_of(config, takes, work, card)
    unit = "step" if config.verb == "sft" else "iteration"
    named = card.name if card else "this CPU"
    tokens = (work.simulated + work.learnt) * takes.tokens
    several = config.verb == "rl" and config.batch_size
    updates = f", in {reinforce.updates_of(config, reinforce.episodes_of(config)):,} updates" if several else ""
    counts = f"{work.simulated:,} simulator steps, {work.learnt:,} states learnt from, {tokens:,} tokens"
    where = "" if suite_in(scenes(config.env)[0].make) else " on the GPU too,"
    beside, left_out = f"and a simulator{where} whose rate is not known", "evaluations and the simulator"
    if simulator is not None:
        beside = f"{time_text(simulator)} of the simulator ({config.num_workers} processes)"
        left_out = "evaluations"
    peak = f"{UTILIZATION:.0%} of {rate / UTILIZATION / 1e12:.3g} TFLOP/s"
    console.print(f"{unit}: at most {counts}{updates}", highlight=False)
    console.print(f"on {named} at {peak}: {time_text(policy)} of the model, {beside}", highlight=False)
    if work.steps:
        total = time_text(work.steps * (policy + (simulator or 0.0)))
        console.print(f"run: {work.steps:,} {unit}s, {total} without {left_out}", highlight=False)
    console.print(_cards(config, takes))
    return takes


def _sizes(config: DictConfig, takes: PolicyFootprint) -> Table:
    table = Table("", "", title=f"{config.verb} of {config.policy}, {config.dtype}, LoRA rank {config.lora_rank}")
    batch, envs = config.micro_batch_size, config.num_envs
    share = takes.trainable / takes.parameters
    copies = f", {config.dtype} copies of what learns among them" if products_of(config) else ""
    table.add_row("parameters", f"{takes.parameters:,}")
    table.add_row("trainable", f"{takes.trainable:,} ({share:.2%})")
    for name, value in (
        ("weights", takes.weights),
        ("the base beside them, for forward KL" if takes.base else "the base: the same weights", takes.base),
        ("gradients", takes.gradients),
        ("optimizer (AdamW's two moments)", takes.optimizer),
        (f"activations of an update, micro-batch {batch}{copies}", takes.activations.at(batch)),
        ("the optimizer's scratch", takes.scratch),
        (f"cache of a rollout, {envs} environments", takes.cache * envs),
        ("activations of a rollout, cache included", takes.rollout.at(envs)),
        ("most in an update", takes.update_peak(batch)),
        ("most in a rollout", takes.held() + takes.rollout.at(envs)),
    ):
        table.add_row(name, size_text(value))
    return table


def _cards(config: DictConfig, takes: PolicyFootprint) -> Table:
    """The micro-batch that fits on each GPU in an update and, for a verb that plays episodes, whether its rollout fits.
    A simulation on the GPU itself is not counted.
    """
    envs, acts = config.num_envs, config.verb != "sft"
    columns = [f"largest micro-batch\n(asked for: {config.micro_batch_size})"]
    columns += [f"rollout of\n{envs} environments"] if acts else []
    judged = "an update, and a rollout without its simulator" if acts else "an update"
    table = Table("GPU", "memory", *columns, title=f"What fits where: {judged}")
    for card in CARDS.values():
        largest, most = takes.largest_micro_batch(card.memory), takes.most_environments(card.memory)
        room = f"does not fit, {most} do" if most else "does not fit"
        cells = [str(largest) if largest else "does not fit", "fits" if most >= envs else room]
        table.add_row(card.name, size_text(card.memory), *cells[: len(columns)])
    return table
