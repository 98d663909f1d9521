"""The verbs about policies: to learn, and to measure."""

from typing import Literal

from vla_razor.config import kinds as k
from vla_razor.config.keys import Computing, Verb, key

DRAWERS = [f"{change} {place} drawer" for change in ("open", "close") for place in ("top", "middle", "bottom")]
DRY_RUN = "print what the run would take on the device, or on device=a100-40, a100-80, h100, ...; start nothing"
EMBEDDINGS = "of instructions, for RT-1: an .npz, or the Universal Sentence Encoder's folder; null: the .npz beside it"


class Common(Computing):
    """Every verb about policies"""

    policy: k.Text = key("tiny", "tiny, a run, a checkpoint folder, a Hub id or module:factory; to act alone: scripted")
    oft: k.Mapping | None = key(
        None,
        "open it as discrete OpenVLA-OFT: {chunk: 8, stop_token: true, normalization: bounds_q99}; "
        "null: as its config.json says, which the original's does not",
        before=None,
    )
    unnorm_key: k.Text | None = key(None, "whose action statistics it uses; null: the robot's, or the only ones")
    prompt: Literal["template", "bare"] | None = key(None, "OpenVLA's, or the instruction alone; null: the policy's")
    temperature: k.Positive | None = key(None, "of the policy's distribution; null: the policy's own")
    dtype: k.Precision = key("float32", "of the weights; of products alone in training, which learns float32")
    robot: Literal["google_robot", "panda", "simpler_env"] = key(
        "panda", "who acts in env and prior; simpler_env is the Google robot in SimplerEnv itself"
    )
    image_size: k.Size | None = key(None, "of the camera, [height, width]; null: the robot's own", "pixels")
    sim_backend: Literal["auto", "cpu", "gpu"] = key(
        "auto", "of env and prior; auto is the policy's GPU where scripts/check_gpu.py has passed, else cpu"
    )
    num_envs: k.Count = key(48, "stepped together", "environments")
    num_workers: k.Count = key(2, "that simulate on a CPU", "processes")


class OnTasks(Common):
    """Every verb that plays tasks"""

    env: k.Suite = key("pick_can", "the tasks: those of a suite")


class Ranked(Verb):
    """Every verb whose work several ranks share"""

    launcher: Literal["here", "ray"] = key(
        "here", "this process, which may be one of torchrun's; ray: ranks on a cluster (docs/scale.md)", before="here"
    )
    devices: k.Count = key(1, "of each node, for launcher=ray: a GPU, or a core, for each", "ranks", before=1)
    nodes: k.Count = key(1, "for launcher=ray", "nodes", before=1)


class BesidePrior(OnTasks):
    """Every verb that measures forgetting"""

    prior: k.Suite | None = key("drawer", "the tasks on which forgetting is measured; null: none")


class Probed(Verb):
    """Every verb that makes a probe set"""

    probe_states: k.Count = key(256, "of the probe set", "states")
    other_instructions: k.Sentences = key(
        ["pick coke can", *DRAWERS],
        "of tasks that the base knows, none of which is run: spillover is measured under them",
        "instructions",
        before=[],
    )


class Training(Probed, BesidePrior, Ranked):
    """Every training of a policy"""

    train_vision: k.Switch = key(False, "let the vision stacks learn too")
    learning_rate: k.Positive = key(1.5e-4, "after the warm-up")
    gain_learning_rate: k.Positive | None = key(1e-3, "of the language model's norm gains; null: learning_rate")
    lora_rank: k.Whole = key(0, "of adapters; 0 trains the weights themselves")
    lora_alpha: k.Positive = key(16, "adapters are scaled by lora_alpha / lora_rank")
    gradient_checkpointing: k.Switch = key(
        False, "compute activations again in the backward pass, for memory", before=False
    )
    betas: k.Betas = key([0.9, 0.99], "of AdamW")
    eps: k.Positive = key(1e-6, "of AdamW")
    weight_decay: k.Number = key(0.0, "of AdamW")
    schedule: k.Schedule = key("constant", "of the learning rates, after the warm-up")
    warmup_steps: k.Whole = key(3, "in which the learning rates rise", "optimizer steps")
    max_grad_norm: k.Positive = key(1.0, "norm to which longer gradients are cut")
    micro_batch_size: k.Count = key(256, "in one forward and backward pass", "samples")
    spillover_coefficient: k.Number = key(
        0.0, "weight of a penalty on KL(base || tuned) at the same images under other_instructions", before=0.0
    )
    replay: k.Text | None = key(
        None,
        "folder that `vla-razor collect --env drawer` wrote, to learn prior tasks again; several: with commas",
        before=None,
    )
    replay_coefficient: k.Number | None = key(
        None,
        "weight of a penalty on the cross-entropy of what is replayed; 0: nothing is; null: sft's replay_share instead",
        before=None,
    )
    penalties: k.Coefficients = key(
        {}, "of your own, with their weights: a class charges for each decision (CONTRIBUTING.md)", before={}
    )
    save_every: k.Count = key(10, "between checkpoints; the last step is always saved", "steps")
    probe_every: k.Whole = key(10, "between measures of forward KL on the probe set; 0: never", "steps")
    forgetting_budget: k.Part | None = key(
        None, "share of prior success that may be lost, as in 0.05, forecast by law at every measure; null: no budget"
    )
    law: k.Text | None = key(None, "law.json, or the folder of the report that wrote it")
    on_budget: Literal["stop", "lower"] = key(
        "stop", "at the budget: end the training, or halve its learning rates at each measure beyond it"
    )
    eval_episodes: k.Whole = key(
        50, "a task of env and prior, for base and tuned policy at the end of the training; 0: none", "episodes"
    )
    dry_run: k.Switch = key(False, DRY_RUN)


class Supervised(Training):
    """SFT and distillation"""

    batch_size: k.Count = key(32, "in an optimizer step", "states")
    loss: Literal["cross_entropy", "openvla"] = key("cross_entropy", "over action ids, or the whole vocabulary")
    prefix_jitter: k.Number = key(
        2.0,
        "(standard deviation) by which tokens fed back are moved; 0: as OpenVLA trains, and for loss=openvla",
        "bins",
        before=0.0,
    )
    augmentation: k.Whole = key(0, "by which images are shifted at most, at random", "pixels")
    kl_coefficient: k.Number = key(0.0, "weight of a penalty on KL(base || tuned) at the batch's states")
    learning_rate: k.Positive = 3e-4
    gain_learning_rate: k.Positive | None = 2e-3  # in the ratio of REINFORCE's
    warmup_steps: k.Whole = 10


class Collect(OnTasks, Ranked):
    """Collect successful demonstrations over a grid of start positions; `collect show DIR` summarises a store."""

    policy: k.Text = key(
        "scripted",
        "scripted, vla (the embedded base), RT-1's SavedModel, a run folder, a checkpoint folder or a Hub id",
        before="scripted",
    )
    style: Literal["direct", "across", "sideways", "tucked", "steep"] = key(
        "direct",
        "of the scripted expert: direct is the base's own, steep is for drawers, the others are for the can",
        before="direct",
    )
    noise: k.Share = key(0.5, "share of the scripted expert's steps that are disturbed, so that recoveries are shown")
    grid: k.Grid = key("10x10", "start positions")
    per_point: k.Count = key(10, "wanted from each start position", "successes")
    cameras: k.Cameras = key([], "whose pictures are kept beside those that the policy looks at", "cameras", before=[])
    max_attempts: k.Count = key(5, "a start position is given up after max_attempts * per_point episodes")
    embeddings: k.Text | None = key(None, EMBEDDINGS)


class Import(Verb):
    """Take demonstrations from another dataset: `import lerobot DIR` (v3.0, v2.1, or a Hub id), `import rlds DIR`."""

    format: Literal["lerobot", "rlds"] = key("lerobot", "of the dataset")
    source: k.Text | None = key(None, "folder of the dataset, or its id on the Hub, as DIR is")
    name: k.Text | None = key(None, "of the dataset, and of its action statistics; null: that of its folder")
    camera: k.Text | None = key(None, "the dataset's key of the pictures; null: the only one")
    cameras: k.Keys | None = key(
        None,
        "several, instead of camera: their keys by the names that they get, as in {front: image_0, wrist: image_1}",
    )
    action: k.Text = key("action", "the dataset's key of what to imitate")
    state: k.Text | None = key("observation.state", "the dataset's key of the proprioception; null: none")
    success: k.Text | None = key(None, "the dataset's key of success at each step; null: every episode ends in one")
    instruction: k.Text | None = key(None, "of every episode, instead of the dataset's own")
    episodes: k.Ranges | None = key(None, "by their numbers, as in 0:50,70; null: all", "episodes")
    only: k.Sentences = key([], "the instructions whose episodes are taken; []: all", "instructions")
    least_steps: k.Count = key(2, "of an episode that is taken", "control steps")
    every: k.Count = key(1, "of the dataset's that make one of a demonstration's", "control steps")
    convention: k.Mapping | None = key(
        None, "of its actions, as in {control: delta, rotation: axis_angle, gripper: close_positive}; null: not known"
    )
    convert: k.Mapping | None = key(None, "what of the convention to change, as in {gripper: open_unit}; null: nothing")
    image_size: k.Size | None = key(None, "to which larger pictures are shrunk, [height, width]; null: as they are")
    held_out: k.Share = key(0.1, "share of the episodes that nothing is learned from, kept in DIR/held_out")
    fps: k.Count | None = key(None, "of an RLDS dataset, which does not say it; null: as a LeRobot dataset says")
    damaged: Literal["stop", "drop"] = key("stop", "at a damaged episode: end with a message, or leave it out")
    seed: k.Whole = key(0, "of which episodes are held out")
    logger: k.Logger = "none"


class Export(Verb):
    """Write demonstrations as a LeRobot dataset: `export lerobot DIR --out DIR`."""

    format: k.LeRobot = key("lerobot", "of the dataset")
    demos: k.Text | None = key(None, "folder that `vla-razor collect` or `import` wrote, as DIR is")
    version: Literal["3.0", "2.1"] = key("3.0", "of the format; openpi and GR00T read 2.1")
    pictures: Literal["video", "png"] = key("video", "as a film in H.264, or as PNG, which loses nothing")
    quality: k.Whole = key(18, "constant rate factor of the film: 0 loses least, 51 most")
    logger: k.Logger = "none"


class Sft(Supervised):
    """Fine-tune on demonstrations: cross-entropy on the action tokens."""

    demos: k.Text | None = key(None, "folder that `vla-razor collect` or `import` wrote")
    epochs: k.Count = key(1, "over the demonstrations", "passes")
    replay_share: k.Part = key(0.25, "share of every batch, where there is a replay and replay_coefficient=null")
    save_every: k.Count = 50
    probe_every: k.Whole = 50


class Rl(Training):
    """Fine-tune by REINFORCE on the binary success of batched rollouts."""

    iterations: k.Count = key(80, "each of rollouts, then optimizer steps; save_every and probe_every count them")
    grid: k.Grid = key("5x5", "start positions, the same in every iteration; random: `points` new ones in each")
    points: k.Count = key(16, "of grid=random", "start positions")
    per_point: k.Count = key(5, "from each start position in every iteration", "episodes")
    batch_size: k.Count | None = key(None, "in an optimizer step; null: all of an iteration's", "episodes", before=None)
    baseline: Literal["grid_point", "batch", "one_zero"] = key(
        "grid_point", "what rewards are normalised within; one_zero: 1 for a success, 0 for a failure"
    )
    normalizer: Literal["length", "tokens", "episodes"] = key(
        "length",
        "length: an episode counts by the mean of its tokens' log-probabilities; tokens, episodes: by their sum",
    )
    kl_coefficient: k.Number = key(0.0, "weight of a penalty on KL(tuned || base) at the visited states")
    staleness: k.Whole = key(0, "by which the policy that plays is older than the one that learns", "iterations")


class Distill(Supervised):
    """Fine-tune on what the scripted expert would have done at the states that the policy visits."""

    iterations: k.Count = key(12, "each of rollouts, then optimizer steps; save_every and probe_every count them")
    grid: k.Grid = key("4x4", "start positions")
    per_point: k.Count = key(3, "from each start position in every iteration", "episodes")
    guidance: k.Share = key(0.5, "share of the first iteration's steps that the expert takes; 0 in the last one")
    updates: k.Count = key(30, "of an iteration, on states that were visited in it", "optimizer steps")
    save_every: k.Count = 6
    probe_every: k.Whole = 2


class Eval(OnTasks, Ranked):
    """Success rates from uniformly drawn starts, with Wilson intervals; paired with a second policy by --against."""

    episodes: k.Count = key(100, "a task", "episodes")
    videos: k.Whole = key(0, "filmed, a task", "episodes")
    against: k.Text | None = key(None, "a second policy, compared on the same starts; or several, separated by commas")
    greedy: k.Switch = key(False, "take the likeliest tokens instead of sampling")
    embeddings: k.Text | None = key(None, EMBEDDINGS)


class Kl(Probed, OnTasks, Ranked):
    """Forward KL from the base to a policy on the new task's probe set, in closed form."""

    base: k.Text | None = key(None, "the policy before fine-tuning; null: what the run or adapter started from")
    states: k.Text | None = key(
        None, "demonstrations at whose states it is measured, without a simulator; null: the base's own", before=None
    )
    law: k.Text | None = key(
        None, "law.json, or the folder of the report that wrote it: forecasts what was forgotten", before=None
    )


class Stats(Computing):
    """Work out the action statistics of demonstrations: `stats DIR`; with a policy, write a copy that has them."""

    demos: k.Text | None = key(None, "folder that `vla-razor collect` or `import` wrote, as DIR is")
    policy: k.Text | None = key(None, "whose copy is to use them, on a robot or a suite that it has none of")
    oft: k.Mapping | None = key(None, "open it as discrete OpenVLA-OFT, as in {chunk: 8}; null: as it says it is")
    dtype: k.Precision = key("float32", "of the copy's weights")
    unnorm_key: k.Text | None = key(None, "the name that they get; null: the robot's or the suite's")
    mask: k.Switches | None = key(
        None, "which numbers of an action are normalised; null: all but a gripper in [-1, 1]", before=None
    )


class Interpolate(Common):
    """Policies on the line between the base's weights and the tuned ones (WiSE-FT)."""

    base: k.Text | None = key(None, "the policy before fine-tuning; null: what the run started from", before=None)
    shares: k.Shares = key([0.25, 0.5, 0.75], "of the way from the base to the tuned policy")
