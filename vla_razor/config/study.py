"""The verbs that are made of others, which hold those verbs' settings, and what reads their tables."""

from typing import Any, Literal

from vla_razor.config import kinds as k
from vla_razor.config.keys import Computing, Verb, key
from vla_razor.config.robot import DRY_RUN, BesidePrior, OnTasks

ROLLOUTS = {"iterations": 12, "grid": "random", "points": 16, "per_point": 6, "probe_every": 3, "eval_episodes": 0}


def section(**settings: object) -> Any:
    return key(settings, "settings of that verb, where they differ from its own defaults")


class Launched(Verb):
    """Every study of several runs"""

    axes: k.Axes = key({}, "what the runs differ in, given as method=sft,rl learning_rate=1e-4,3e-4 seed=0,1,2")
    launcher: k.Launcher = key(
        "local", "here: one after the other in this process; local: a process each; on Ray; on Slurm, by submitit"
    )
    jobs: k.Count = key(1, "at a time, for launcher=local", "runs")
    slurm: k.Mapping = key({}, "submitit's settings, as in {slurm_partition: gpu, gpus_per_node: 1, timeout_min: 600}")


class Compared(Launched, BesidePrior):
    """The demo and the sweep of policies"""

    new_episodes: k.Count = key(96, "of the new task in the evaluation", "episodes")
    prior_episodes: k.Count = key(24, "of each prior task in the evaluation", "episodes")
    checkpoints: k.Count = key(2, "of each run that are evaluated, the last one among them", "checkpoints")
    interpolated: k.Parts = key([], "shares of the way to each run's last policy, measured too (WiSE-FT)", before=[])
    videos: k.Whole = key(3, "of the new task that the film shows, policies side by side", "starts", before=0)
    far: k.Mapping | None = key(
        {"style": "tucked"},
        "settings of collect in which sft_far's demonstrations differ, as in {policy: RT1_DIR}; null: no sft_far",
        before=None,
    )
    collect: k.Section = section(grid="5x5", per_point=12)
    sft: k.Section = section(
        epochs=7,
        learning_rate=1e-3,
        gain_learning_rate=7e-3,
        schedule="cosine",
        save_every=120,
        probe_every=120,
        eval_episodes=0,
    )
    rl: k.Section = section(**ROLLOUTS, save_every=6)
    distill: k.Section = section(eval_episodes=0)
    eval: k.Section = section()
    dry_run: k.Switch = key(False, DRY_RUN)


class Demo(Compared):
    """The main job: base, SFT and REINFORCE side by side, and what each forgot."""

    axes: k.Axes = key({"method": ["sft", "sft_far", "rl"]})
    launcher: k.Launcher = "here"


class Sweep(Compared):
    """Many fine-tunings of one base: method=sft,rl learning_rate=1e-4,3e-4 seed=0,1,2, here, on Ray or on Slurm."""

    axes: k.Axes = key({"method": ["sft", "rl"]})


class Sequential(Launched):
    """Every sequence of tasks"""

    axes: k.Axes = key({"method": ["sft", "rl"]}, "what the sequences differ in, as in method=sft,rl seed=0,1,2")
    launcher: k.Launcher = "here"
    checkpoints: k.Count = key(
        1, "of each stage that are evaluated on its own task, the last one among them", "checkpoints"
    )
    recover: k.Switch = key(True, "learn again, after the last stage, each task of which something was lost")


class Sequence(Sequential, BesidePrior):
    """Tasks learned one after another, and what is left of each: --env A,B,C method=sft,rl seed=0,1,2."""

    env: k.Suite = key("all", "the tasks, in the order in which they are learned: a suite's, or those of several, A,B")
    prior: k.Suite | None = key("drawer", "tasks that the base knows and no stage learns; null: none")
    share: k.Way = key(1.0, "of the way to what a stage learned that is gone (WiSE-FT) before the next; 1: all")
    collect: k.Section = section(grid="5x5", per_point=4)
    sft: k.Section = section(
        epochs=7, learning_rate=1e-3, gain_learning_rate=7e-3, schedule="cosine", save_every=50, eval_episodes=0
    )
    rl: k.Section = section(**ROLLOUTS, save_every=3)
    distill: k.Section = section(eval_episodes=0)
    eval: k.Section = section(episodes=50)
    kl: k.Section = section()
    dry_run: k.Switch = key(False, DRY_RUN)


class Plasticity(OnTasks):
    """How well fine-tuned policies still learn another task: `vla-razor plasticity DIR... --env TASK`."""

    runs: k.Folders = key([], "of fine-tunings of one base", "folders")
    method: Literal["rl", "sft"] = key(
        "rl", "sft, on the scripted expert: for a task that no policy solves", before="rl"
    )
    seeds: k.Seeds = key([0], "of the second training")
    rl: k.Section = section(**ROLLOUTS, save_every=12)
    collect: k.Section = section(grid="5x5", per_point=4)
    sft: k.Section = section(epochs=4, save_every=25, eval_episodes=0)
    eval: k.Section = section(episodes=96)


class Report(Verb):
    """What runs say, alone and together: `vla-razor report DIR...` of run folders of any verb."""

    runs: k.Folders = key([], "of runs of any verb", "folders")
    measure: Literal["forward_kl_per_token", "spillover", "activation_l2"] = key(
        "forward_kl_per_token", "what the law forecasts forgetting by"
    )
    logger: k.Logger = "none"


class Mnist(Computing):
    """ParityMNIST, the controlled experiment: what eight methods forget, and what predicts it; `mnist theory` iterates
    the paper's projections.
    """

    data_dir: k.Text | None = key(
        None, "of MNIST/raw and FashionMNIST/raw, downloaded there if missing; null: the package's subset", "folder"
    )
    jobs: k.Count = key(2, "on a CPU, one thread each", "processes")
    seeds: k.Seeds = key([0], "of the bases")
    methods: k.Names = key(
        ["grpo", "grpo_kl", "one_zero_reinforce", "sft_1", "sft_2", "sft_oracle", "sft_distilled", "simpo"], "compared"
    )
    rates: k.Count = key(8, "between the next two, evenly spaced on a logarithmic scale", "learning rates")
    lowest_rate: k.Positive = key(3e-6, "the lowest learning rate")
    highest_rate: k.Positive = key(1e-3, "the highest learning rate")
    schedules: k.Schedules = key(["constant"], "of the learning rates, after the warm-up")
    lengths: k.Lengths = key([2], "of a run", "epochs")
    widths: k.Widths = key([256, 1024], "of the first hidden layer, for SFT beside the paper's 512", "units")
    checkpoints: k.Count = key(4, "of each run that are measured, evenly spaced, the last among them", "checkpoints")
    dry_run: k.Switch = key(False, DRY_RUN)
