"""The verbs about language models."""

from typing import Literal

from vla_razor.config import kinds as k
from vla_razor.config.keys import Computing, Verb, key
from vla_razor.config.study import Launched, Sequential, section

SMALL = {"warmup_steps": 0, "max_new_tokens": 48, "gradient_checkpointing": False, "save_every": 5, "probe_every": 5}
SMALL |= {"probe_prompts": 16, "eval_prompts": 0}


class LlmCommon(Computing):
    """Every verb about language models"""

    model: k.Text = key("Qwen/Qwen2.5-3B-Instruct", "a Hub id, a folder, a run folder or smollm (the embedded one)")
    task: k.Task = key("science", "the new task")
    data_dir: k.Text | None = key(None, "folder of local data sets; null: the Hugging Face Hub")
    direct: k.Switch = key(False, "ask for the answer without reasoning")
    easy: k.Switch = key(False, "of task=tool: requests of one call, with the documentation of its tool alone")
    dtype: k.Precision = key("bfloat16", "of products; weights that learn or are saved are float32")


class Generating(Verb):
    """Every verb whose model writes"""

    max_new_tokens: k.Count = key(2048, "of a completion", "tokens")
    micro_batch_size: k.Count = key(8, "in one pass on a device", "sequences")


class LlmTraining(Generating, LlmCommon):
    """Every training of a language model"""

    learning_rate: k.Positive = key(1e-5, "after the warm-up")
    schedule: k.Schedule = key("constant", "of the learning rate, after the warm-up")
    warmup_steps: k.Whole = key(50, "in which the learning rate rises", "optimizer steps")
    epochs: k.Count = key(1, "over the training split", "passes")
    max_steps: k.Whole = key(0, "at most; 0: what the epochs come to", "optimizer steps")
    max_grad_norm: k.Positive = key(1.0, "norm to which longer gradients are cut")
    weight_decay: k.Number = key(0.0, "of AdamW")
    lora_rank: k.Whole = key(0, "of adapters; 0 trains the weights themselves")
    lora_alpha: k.Positive = key(16, "adapters are scaled by lora_alpha / lora_rank")
    gradient_checkpointing: k.Switch = key(True, "compute activations again in the backward pass, for memory")
    max_examples: k.Whole = key(0, "of the training split; 0: all", "examples")
    save_every: k.Count = key(50, "between checkpoints; the last step is always saved", "steps")
    probe_every: k.Whole = key(50, "between measures of forward KL on the probe set; 0: never", "steps")
    probe_prompts: k.Count = key(64, "of the test split, in the probe set", "prompts")
    eval_prompts: k.Whole = key(100, "of the test split, which base and tuned model answer at last; 0: none", "prompts")
    dry_run: k.Switch = key(False, "print parameters, memory a device and tokens a step; start nothing")


class FromAnnotations(LlmTraining):
    """SFT and SimPO"""

    annotations: k.Text | None = key(None, "folder that `vla-razor llm annotate` wrote; null: gold answers, for SFT")
    batch_size: k.Count = key(32, "or pairs of them, in an optimizer step", "completions")


class FromRewards(LlmTraining):
    """GRPO and REINFORCE"""

    group_size: k.Count = key(64, "of a prompt", "completions")
    prompts_per_step: k.Count = key(8, "in one generation", "prompts")
    num_iterations: k.Count = key(1, "on the same completions", "updates")
    temperature: k.Positive = key(1.0, "of the policy that samples")
    use_vllm: Literal["auto", "true", "false"] = key("auto", "auto: where it is installed and there is a GPU")


class LlmSft(FromAnnotations):
    """Fine-tune on annotated answers, or on the gold answers alone."""


class LlmSimpo(FromAnnotations):
    """Fine-tune on pairs of a right and a wrong answer, by SimPO with the paper's loss."""

    margin: k.Number = key(1.0, "by which the right answer's log-probability should exceed the wrong one's")
    log_probs: Literal["sum", "mean"] = key("sum", "over an answer's tokens: the paper prints sums, TRL takes means")


class LlmGrpo(FromRewards):
    """Fine-tune by GRPO on the task's binary reward."""

    kl_coefficient: k.Number = key(0.0, "weight of TRL's penalty on KL(tuned || base) at the tuned model's samples")


class LlmReinforce(FromRewards):
    """Fine-tune by 1-0 REINFORCE: right completions are made likelier, wrong ones left alone."""


class LlmAnnotate(LlmCommon):
    """Sample a teacher's responses to the training prompts; keep one that is right for each."""

    teacher: k.Text | None = key(None, "a model as `model` may be, or what the endpoint calls it; null: model itself")
    endpoint: k.Text | None = key(None, "OpenAI-compatible, as in http://localhost:8000/v1; null: a local teacher")
    api_key_variable: k.Text = key("OPENAI_API_KEY", "environment variable that holds the endpoint's key")
    samples: k.Count = key(16, "to a prompt, at most", "responses")
    rejected: k.Switch = key(False, "keep a wrong response too, for SimPO")
    oracle: k.Switch = key(
        False, "draw from the local teacher restricted to right answers, where the task lists them", before=False
    )
    requests_per_minute: k.Count = key(600, "at most", "requests")
    concurrency: k.Count = key(8, "at a time, of an endpoint (100 at most) or a local teacher", "responses")
    timeout: k.Positive = key(900.0, "for a response: 16,384 tokens at 20 a second take 820", "seconds")
    temperature: k.Positive | None = key(1.0, "of a local teacher, over its whole vocabulary; null: its own settings")
    max_new_tokens: k.Count = key(16384, "of a response, a reasoning model's chain included", "tokens")
    max_examples: k.Whole = key(0, "of the training split; 0: all", "examples")


class LlmKl(Generating, LlmCommon):
    """Forward KL from the base to a language model on the new task's probe set, over the whole vocabulary."""

    base: k.Text | None = key(None, "the model before fine-tuning; null: what `model` was fine-tuned from")
    probe_prompts: k.Count = key(64, "of the test split, in the probe set", "prompts")


class LlmEval(Generating, LlmCommon):
    """Right answers on the new task, and lm-eval's scores on the prior tasks, with standard errors."""

    prior_tasks: k.Names = key(
        ["hellaswag", "truthfulqa", "mmlu", "ifeval", "winogrande"], "of lm-eval; humaneval too, which needs run_code"
    )
    examples: k.Whole = key(0, "of each prior task; 0: all", "examples")
    run_code: k.Switch = key(False, "run the programs that the model writes for humaneval, in a process with limits")
    eval_prompts: k.Whole = key(0, "of the new task's test split; 0: all", "prompts")
    temperature: k.Number = key(0.0, "at which the new task is answered; 0: by the likeliest tokens", before=0.0)


class LlmProbe(LlmCommon):
    """CKA and CKNNA to the base on Wikipedia paragraphs; sparsity and rank of the weights' update."""

    base: k.Text | None = key(None, "the model before fine-tuning; null: what `model` was fine-tuned from")
    paragraphs: k.Count = key(500, "of Wikipedia", "paragraphs")
    max_length: k.Count = key(256, "of a paragraph", "tokens")
    micro_batch_size: k.Count = key(8, "in one forward pass", "paragraphs")


class LlmCompared(Launched, LlmCommon):
    """The demo and the sweep of language models"""

    axes: k.Axes = key({"method": ["sft", "grpo"]})
    checkpoints: k.Count = key(1, "of each run that are evaluated, the last one among them", "checkpoints")
    cold_start: k.Mapping | None = key(
        None,
        "settings of llm_sft that teach every base the form of an answer: {max_examples: 32, epochs: 1}; null: none",
        before=None,
    )
    llm_sft: k.Section = section(eval_prompts=0)
    llm_grpo: k.Section = section(eval_prompts=0)
    llm_reinforce: k.Section = section(eval_prompts=0)
    llm_simpo: k.Section = section(eval_prompts=0)
    llm_annotate: k.Section = key(
        {"max_new_tokens": 2048}, "settings of that verb for sft_own and sft_oracle's labels", before={}
    )
    llm_eval: k.Section = section()


class LlmDemo(LlmCompared):
    """A small model, SFT and GRPO side by side: the new task, prior tasks and forward KL."""

    launcher: k.Launcher = "here"
    model: k.Text = "smollm"
    task: k.Task = "tool"
    direct: k.Switch = True
    easy: k.Switch = True
    cold_start: k.Mapping | None = key({"max_examples": 32, "epochs": 1})
    llm_sft: k.Section = section(learning_rate=5e-5, batch_size=8, epochs=1, **SMALL)
    llm_grpo: k.Section = section(learning_rate=3e-5, group_size=4, prompts_per_step=4, max_steps=10, **SMALL)
    llm_eval: k.Section = section(
        prior_tasks=["hellaswag", "winogrande"], examples=100, max_new_tokens=48, micro_batch_size=16
    )


class LlmSweep(LlmCompared):
    """Many fine-tunings of one or several models: method=sft,grpo model=A,B learning_rate=1e-5,3e-5 seed=0,1."""


class LlmSequence(Sequential, LlmCommon):
    """Language tasks learned one after another, and what is left of each: --task A,B method=sft,grpo seed=0,1,2."""

    axes: k.Axes = key({"method": ["sft", "grpo"]})
    task: k.Tasks = key(  # pyright: ignore[reportIncompatibleVariableOverride]  (several, where others take one)
        "number,tool", "the tasks, in the order in which they are learned"
    )
    llm_sft: k.Section = section(eval_prompts=0)
    llm_grpo: k.Section = section(eval_prompts=0)
    llm_reinforce: k.Section = section(eval_prompts=0)
    llm_eval: k.Section = section()
    llm_kl: k.Section = section()
