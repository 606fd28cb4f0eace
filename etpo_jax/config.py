"""Every setting of a run: one frozen dataclass per part, one flag per field.

The only module that defines flags of training. Other modules get the smallest of these dataclasses
that they need, never the flags.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from absl import flags

from env.base import UsageError
from models.attention import IMPLEMENTATIONS
from models.lora import LoraConfig


def option(
    default: Any,
    help_text: str,
    *,
    choices: tuple[str, ...] = (),
    lower: float | None = None,
    upper: float | None = None,
    exclusive_lower: bool = False,
    may_differ: bool = False,
) -> Any:
    """A dataclass field that is a flag.

    Args:
      default: the value without a flag.
      help_text: what `--help` says.
      choices: the allowed values of a text field.
      lower, upper: the allowed range of a number.
      exclusive_lower: whether `lower` itself is not allowed.
      may_differ: whether a run may be resumed with another value.
    """
    metadata = {
        "help": help_text,
        "choices": choices,
        "lower": lower,
        "upper": upper,
        "exclusive_lower": exclusive_lower,
        "may_differ": may_differ,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of the dataclasses below: checks each field against its range when it is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check_field(field, getattr(self, field.name))


def _check_field(field: dataclasses.Field, value: Any) -> None:
    meta = field.metadata
    if value is None:
        return
    if meta["choices"] and value not in meta["choices"]:
        allowed = ", ".join(meta["choices"])
        raise ValueError(f"--{field.name}={value}: must be one of {allowed}")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    lower, upper = meta["lower"], meta["upper"]
    too_low = lower is not None and (value <= lower if meta["exclusive_lower"] else value < lower)
    too_high = upper is not None and value > upper
    if too_low or too_high or math.isnan(value):
        sign = ">" if meta["exclusive_lower"] else ">="
        parts = [f"{sign} {lower:g}"] if lower is not None else []
        parts += [f"<= {upper:g}"] if upper is not None else []
        raise ValueError(f"--{field.name}={value:g}: must be {' and '.join(parts) or 'a number'}")


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
    """What runs, for how long, and where it is kept."""

    run_dir: str | None = option(
        None, "Folder of the run; it is made, or resumed.", may_differ=True
    )
    algorithm: str = option(
        "etpo",
        "etpo is Algorithm 1; ppo_kl (PPO on whole actions) and poad (on tokens, lambda-returns) "
        "are policy gradients with a KL penalty; reflection samples the untrained model.",
        choices=("etpo", "ppo_kl", "poad", "reflection"),
    )
    num_env_steps: int = option(
        480, "Environment steps (executed actions) in all.", lower=1, may_differ=True
    )
    seed: int = option(0, "Seed of sampling, replay and initialisation.", lower=0)
    checkpoint_every: int = option(1, "Updates between two checkpoints.", lower=1, may_differ=True)
    inspect_actions: int = option(
        8,
        "Newest actions that the report shows token by token; 0 is none.",
        lower=0,
        may_differ=True,
    )
    checkpoints_to_keep: int = option(2, "Newest checkpoints kept.", lower=1, may_differ=True)


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    """The environment."""

    dataset: str = option(
        "balance_scale",
        "Data set of the task (python -m env.datasets lists them), csv:PATH for your own, "
        "questions:NAME for questions about a table, or toy.",
    )
    target: str | None = option(None, "Target column of a table of your own (csv:PATH).")
    task_description: str | None = option(None, "Words for your own table in the prompt.")
    data_dir: str | None = option(None, "Folder with raw tables, see docs/tasks.md.")
    max_steps: int = option(5, "Environment steps of an episode at most.", lower=1)
    prompt_style: str = option(
        "paper",
        "Prompts as in the paper's figures, or as in the authors' code.",
        choices=("paper", "official"),
    )
    num_splits: int = option(5, "Train/validation splits that a reward averages.", lower=1)
    metric: str = option(
        "roc_auc",
        "Score of a split: roc_auc (the paper), accuracy, log_loss, average_precision, or your own "
        "as module:function.",
    )
    max_rows: int = option(2000, "Rows kept of a table of your own.", lower=4)
    forbidden_constructs: str = option(
        "GridSearchCV(",
        "Texts, separated by commas, that no program may contain; empty allows everything.",
    )
    accept_changed_data: bool = option(
        False, "Take a table of the paper although its rows are not the paper's."
    )


@dataclasses.dataclass(frozen=True)
class ExecutionConfig(Section):
    """How programs are executed."""

    executor: str = option(
        "local",
        "local executes programs on this machine, ray on the nodes of a Ray cluster "
        "(requirements-ray.txt).",
        choices=("local", "ray"),
        may_differ=True,
    )
    ray_address: str = option(
        "",
        "Address of the Ray cluster; empty is RAY_ADDRESS, or else this machine's.",
        may_differ=True,
    )
    num_ray_actors: int = option(
        0, "Executors on the Ray cluster; 0 is one per node.", lower=0, may_differ=True
    )
    num_workers: int = option(
        0,
        "Programs executed at the same time, with Ray by each executor; 0 is one per core.",
        lower=0,
        may_differ=True,
    )
    timeout_s: float = option(
        10.0, "Seconds a program may take per split.", lower=0.0, exclusive_lower=True
    )
    cpu_s: int | None = option(
        None, "Processor seconds a program may take per split; none: half of timeout_s.", lower=1
    )
    memory_mb: int = option(1024, "MiB a program may use on top of its libraries.", lower=16)
    max_threads: int = option(32, "Threads of a program beside its first.", lower=0)
    max_output_kb: int = option(16384, "KiB a program may print per split.", lower=0)
    libraries: str = option(
        "",
        "Modules, separated by commas, that programs may import beyond the standard library, "
        "numpy, scipy, scikit-learn and pandas.",
    )
    reward_cache: str = option(
        "auto",
        "Folder that remembers rewards of programs by content; auto is in ~/.cache, off runs every "
        "program.",
        may_differ=True,
    )
    isolation: str = option(
        "auto",
        "Wall around programs; unsafe has none but separate processes. See docs/execution.md.",
        choices=("auto", "bwrap", "landlock", "seccomp", "unsafe"),
        may_differ=True,
    )

    @property
    def memory_bytes(self) -> int:
        """`memory_mb` in bytes."""
        return self.memory_mb * 2**20

    @property
    def max_output_bytes(self) -> int:
        """`max_output_kb` in bytes."""
        return self.max_output_kb * 2**10

    @property
    def library_names(self) -> list[str]:
        """The modules in `libraries`."""
        return [name.strip() for name in self.libraries.split(",") if name.strip()]


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """The language model and where it lies."""

    model: str = option("models/tiny", "Hugging Face folder of a Llama-family model.")
    dtype: str = option("float32", "Computation of the model.", choices=("float32", "bfloat16"))
    remat: str = option(
        "full",
        "What backward passes compute again instead of keeping it.",
        choices=("none", "dots", "full"),
    )
    attention: str = option(
        "reference",
        "Attention: our own, XLA's, or kernels that never hold the scores, cudnn on NVIDIA GPUs in "
        "16 bits and splash on TPUs. Decoding has a kernel with splash only.",
        choices=IMPLEMENTATIONS,
        may_differ=True,
    )
    mesh: str = option(
        "", "Devices per axis such as fsdp:4,tensor:2; empty: all on fsdp.", may_differ=True
    )
    compilation_cache_dir: str = option(
        "~/.cache/etpo_jax",
        "Folder of compiled programs, so that the next start is quick; empty turns it off.",
        may_differ=True,
    )
    max_prompt_length: int = option(
        256, "Prompt tokens at most; longer prompts are shortened.", lower=8
    )
    length_multiple: int = option(
        64, "Prompts and actions are padded to a multiple of this many tokens.", lower=1
    )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Section):
    """What of the model is trained, in which precision, and how a gradient step is cut up."""

    finetune: str = option(
        "full",
        "full trains copies of all weights; lora trains adapters over one shared frozen base.",
        choices=("full", "lora"),
    )
    lora_rank: int = option(16, "Columns of an adapter's factors.", lower=1)
    lora_alpha: float = option(
        32.0, "An adapter is scaled by alpha / rank.", lower=0.0, exclusive_lower=True
    )
    lora_targets: str = option(
        "q,k,v,o,gate,up,down", "Kernels of every layer that have an adapter."
    )
    trained_dtype: str = option(
        "float32",
        "Storage of weights that --finetune=full trains: float32, or bfloat16 with stochastic "
        "rounding. Adapters and the target critic are always float32.",
        choices=("float32", "bfloat16"),
    )
    microbatch_size: int = option(
        0,
        "Transitions of a minibatch that are on the device at once, their gradients accumulated; "
        "0 is all of them.",
        lower=0,
    )
    loss_chunk_size: int = option(
        0,
        "Positions of the actions whose logits exist at the same time in a gradient step; 0 is all "
        "of them.",
        lower=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finetune == "lora":
            if self.trained_dtype != "float32":
                raise ValueError(
                    f"--trained_dtype={self.trained_dtype}: --finetune=lora needs float32, its "
                    "adapters are small"
                )
            try:
                _ = self.lora
            except ValueError as error:
                raise ValueError(f"--lora_{error}") from error

    @property
    def lora(self) -> LoraConfig | None:
        """Sizes of the adapters, None for full fine-tuning."""
        if self.finetune == "full":
            return None
        targets = tuple(name.strip() for name in self.lora_targets.split(","))
        return LoraConfig(self.lora_rank, self.lora_alpha, targets)


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Section):
    """How actions are drawn; the probability of what is really sampled is kept with the action."""

    temperature: float = option(
        1.0, "Logits are divided by this before sampling.", lower=0.0, exclusive_lower=True
    )
    top_k: int = option(0, "Sample among the most likely tokens only; 0 is all.", lower=0)
    top_p: float = option(
        1.0,
        "Sample among the fewest tokens that hold this much probability.",
        lower=0.0,
        upper=1.0,
        exclusive_lower=True,
    )
    support_threshold: float = option(
        0.0,
        "Policy and reference are restricted to tokens to which the reference gives at least this "
        "probability, in sampling and in every loss; 0 is all tokens.",
        lower=0.0,
        upper=0.5,
    )
    max_new_tokens: int = option(64, "Tokens of an action at most.", lower=1)


@dataclasses.dataclass(frozen=True)
class LearningConfig(Section):
    """Algorithm 1: how much is collected and how it is learnt from."""

    num_envs: int = option(16, "Episodes that run side by side.", lower=1)
    steps_per_update: int = option(1, "Environment steps of each episode between updates.", lower=1)
    updates_per_batch: int = option(4, "Gradient steps after each collection.", lower=1)
    minibatch_size: int = option(16, "Transitions of a gradient step.", lower=1)
    replay_size: int = option(64, "Newest transitions that are kept for learning.", lower=1)
    learn_while_executing: bool = option(
        True,
        "Gradient steps from the replay are taken while programs execute, which hides their time; "
        "otherwise after it, when the replay holds the new transitions too.",
    )
    beta: float = option(
        0.05, "Weight of the KL to the reference, reward per nat.", lower=0.0, exclusive_lower=True
    )
    gamma: float = option(0.99, "Discount between actions.", lower=0.0, upper=1.0)
    gamma_within: float = option(
        1.0, "Discount inside an action (Eq. 6: 1; DISC. ablation: 0.99).", lower=0.0, upper=1.0
    )
    lambda_within: float = option(
        1.0, "Retrace weight along the action; 0 is the paper's target.", lower=0.0, upper=1.0
    )
    polyak_lambda: float = option(
        0.9, "Weight of the old target critic in its update.", lower=0.0, upper=1.0
    )
    critic_loss: str = option(
        "retrace",
        "one_step is the paper's; retrace carries the reward along the action; path regresses the "
        "whole action (docs/algorithm.md).",
        choices=("one_step", "retrace", "path"),
    )
    targets: str = option(
        "update",
        "When etpo's one_step and retrace targets are computed: in each gradient step, as "
        "Algorithm 1 has it, or once at collection, as the authors' code does.",
        choices=("update", "collection"),
    )
    path_starts: str = option(
        "all",
        "Paths of --critic_loss=path: from every token or the first.",
        choices=("all", "root"),
    )
    q_parameterization: str = option(
        "residual",
        "How Q is read: from the critic's logits, or (policy) as its value plus beta log(pi/rho).",
        choices=("residual", "logits", "beta_logits", "dueling", "policy"),
    )
    policy_target: str = option(
        "reference_exp_q",
        "What the policy follows: rho exp(Q/beta) (Eq. 8, 9) or exp(Q/beta) (Eq. 7).",
        choices=("reference_exp_q", "exp_q"),
    )
    policy_loss: str = option(
        "exact",
        "Expectation under the policy, the same corrected by what the critic misses at the sampled "
        "token (doubly_robust), or the authors' plain mean over the vocabulary.",
        choices=("exact", "doubly_robust", "uniform"),
    )
    trust_region: float = option(
        0.0,
        "etpo: how many nats the log probability of an action may have moved since it was sampled; "
        "beyond, it teaches the policy nothing in that step. 0 is no limit.",
        lower=0.0,
    )
    tie_policy: bool = option(
        False, "The policy is the softmax of the critic's own logits: no policy network."
    )
    huber_delta: float | None = option(
        None,
        "Huber delta of one_step and retrace losses; none is the squared error.",
        lower=0.0,
        exclusive_lower=True,
    )
    clip_ratio: float = option(
        0.2,
        "ppo_kl and poad: how far the ratio to the sampling policy may go from 1.",
        lower=0.0,
        exclusive_lower=True,
    )
    baseline: str = option(
        "value",
        "ppo_kl: what a return is held against, a value network or the other actions' mean.",
        choices=("value", "leave_one_out"),
    )
    gae_lambda: float = option(
        0.95,
        "poad: weight of later errors along the action; 1 is the action's return.",
        lower=0.0,
        upper=1.0,
    )
    loss_temperature: float | None = option(
        None,
        "Temperature of policy and reference in the losses; none: that of sampling.",
        lower=0.0,
        exclusive_lower=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        implied = self.q_parameterization in ("residual", "dueling")
        if self.critic_loss == "path" and self.gamma_within != 1.0:
            raise ValueError(
                f"--gamma_within={self.gamma_within:g}: --critic_loss=path needs 1, a path does "
                "not discount inside an action"
            )
        if self.critic_loss == "path" and self.targets == "collection":
            raise ValueError(
                "--targets=collection: --critic_loss=path has no targets of tokens, it needs update"
            )
        if self.policy_loss == "doubly_robust" and self.critic_loss == "path":
            raise ValueError(
                "--policy_loss=doubly_robust: --critic_loss=path has no targets of tokens, it "
                "needs one_step or retrace"
            )
        if self.tie_policy or self.q_parameterization == "policy":
            for is_given, flag in (
                (self.policy_loss != "exact", f"--policy_loss={self.policy_loss}"),
                (self.trust_region > 0, f"--trust_region={self.trust_region:g}"),
            ):
                if is_given:
                    raise ValueError(
                        f"{flag}: with --tie_policy or --q_parameterization=policy the policy has "
                        "no loss of its own"
                    )
        if self.tie_policy and not implied:
            raise ValueError(
                f"--q_parameterization={self.q_parameterization}: --tie_policy needs residual or "
                "dueling, whose Q implies the softmax of the critic's logits as its policy"
            )
        if self.baseline == "leave_one_out" and self.num_envs * self.steps_per_update < 2:
            raise ValueError(
                f"--num_envs={self.num_envs}: --baseline=leave_one_out needs at least two actions "
                "per update"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """Gradient steps of policy and critic."""

    optimizer: str = option("adamw", "Optimiser of both networks.", choices=("adamw", "lion"))
    policy_learning_rate: float = option(5e-4, "Of the policy.", lower=0.0)
    critic_learning_rate: float = option(1e-3, "Of the critic.", lower=0.0)
    policy_warmup_steps: int = option(
        0,
        "Gradient steps over which the policy's learning rate rises linearly from 0: its first "
        "steps follow a critic that has learnt nothing.",
        lower=0,
    )
    clip_norm: float = option(
        1.0, "Global gradient norm of each network at most.", lower=0.0, exclusive_lower=True
    )
    adam_b1: float = option(0.9, "First moment's decay (adamw and lion).", lower=0.0, upper=1.0)
    adam_b2: float = option(0.95, "Second moment's decay (lion: momentum's).", lower=0.0, upper=1.0)
    adam_eps: float = option(
        1e-5,
        "AdamW's epsilon; 1e-8 inflates the nearly zero gradients of the head.",
        lower=0.0,
        exclusive_lower=True,
    )
    weight_decay: float = option(0.0, "Decoupled weight decay.", lower=0.0)


@dataclasses.dataclass(frozen=True)
class EndpointConfig(Section):
    """A model elsewhere that plays --algorithm=reflection."""

    endpoint: str = option(
        "",
        "URL of an OpenAI-compatible endpoint, such as https://api.openai.com/v1, whose model "
        "answers instead of --model; --temperature, --top_p and --max_new_tokens are asked of it.",
        may_differ=True,
    )
    endpoint_model: str = option("", "Name of the model at the endpoint.")
    endpoint_key_variable: str = option(
        "OPENAI_API_KEY",
        "Environment variable that holds the key; without it, none is sent.",
        may_differ=True,
    )
    endpoint_options: str = option(
        "",
        "Further members of each request as a JSON object, such as "
        '{"max_tokens": null, "max_completion_tokens": 512}; null leaves one out.',
    )
    endpoint_concurrency: int = option(8, "Requests at the same time.", lower=1, may_differ=True)
    endpoint_timeout_s: float = option(
        120.0, "Seconds an answer may take.", lower=0.0, exclusive_lower=True, may_differ=True
    )
    endpoint_retries: int = option(
        6, "Further tries of a request that may yet succeed.", lower=0, may_differ=True
    )
    endpoint_prompt_price: float = option(
        0.0, "US dollars per million tokens of prompts.", lower=0.0, may_differ=True
    )
    endpoint_completion_price: float = option(
        0.0, "US dollars per million tokens of answers.", lower=0.0, may_differ=True
    )
    endpoint_budget: float | None = option(
        None,
        "US dollars after which the run stops; needs the prices.",
        lower=0.0,
        may_differ=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise ValueError(
                f"--endpoint={self.endpoint}: needs --endpoint_model, and the other way round"
            )
        prices = self.endpoint_prompt_price + self.endpoint_completion_price
        if self.endpoint_budget is not None and not prices:
            raise ValueError(
                f"--endpoint_budget={self.endpoint_budget:g}: needs --endpoint_prompt_price and "
                "--endpoint_completion_price"
            )
        try:
            is_object = isinstance(json.loads(self.endpoint_options or "{}"), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise ValueError(f"--endpoint_options={self.endpoint_options}: must be a JSON object")


@dataclasses.dataclass(frozen=True)
class HostsConfig(Section):
    """Several hosts that run one program; no setting of the run, which may move between hosts."""

    coordinator_address: str = option(
        "",
        "HOST:PORT of the first of several hosts; auto finds it on TPU pods, Slurm and Open MPI; "
        "empty is a single host.",
    )
    num_processes: int | None = option(
        None, "Hosts in all, with --coordinator_address=HOST:PORT.", lower=1
    )
    process_id: int | None = option(None, "Which of them this is, from 0.", lower=0)


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run: RunConfig = RunConfig()
    task: TaskConfig = TaskConfig()
    execution: ExecutionConfig = ExecutionConfig()
    model: ModelConfig = ModelConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    sampling: SamplingConfig = SamplingConfig()
    learning: LearningConfig = LearningConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    endpoint: EndpointConfig = EndpointConfig()

    def __post_init__(self) -> None:
        if self.learning.policy_loss == "uniform" and self.sampling.support_threshold > 0:
            raise ValueError(
                f"--support_threshold={self.sampling.support_threshold:g}: must be 0 with "
                "--policy_loss=uniform, whose mean over the vocabulary includes masked tokens"
            )
        if self.learning.tie_policy and self.run.algorithm in ("ppo_kl", "poad"):
            raise ValueError(
                f"--tie_policy: --algorithm={self.run.algorithm} has no critic over the vocabulary "
                "that could be the policy"
            )
        if self.endpoint.endpoint:
            if self.run.algorithm != "reflection":
                raise ValueError(
                    f"--algorithm={self.run.algorithm}: --endpoint plays reflection only"
                )
            if self.sampling.support_threshold > 0:
                raise ValueError(
                    f"--support_threshold={self.sampling.support_threshold:g}: must be 0 with "
                    "--endpoint, which does not tell the probabilities of its tokens"
                )
        microbatch = self.finetune.microbatch_size
        if microbatch and self.learning.minibatch_size % microbatch:
            raise ValueError(
                f"--microbatch_size={microbatch}: must divide "
                f"--minibatch_size={self.learning.minibatch_size}"
            )
        if self.model.max_prompt_length % self.model.length_multiple:
            raise ValueError(
                f"--max_prompt_length={self.model.max_prompt_length}: must be a multiple of "
                f"--length_multiple={self.model.length_multiple}"
            )

    @property
    def loss_temperature(self) -> float:
        """Temperature of policy and reference in the losses."""
        return self.learning.loss_temperature or self.sampling.temperature

    def to_dict(self) -> dict[str, Any]:
        """Flag name to value, in the order of the fields above."""
        return {
            field.name: getattr(getattr(self, name), field.name)
            for name, section in _SECTIONS_BY_FIELD.items()
            for field in dataclasses.fields(section)  # type: ignore[arg-type]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """The configuration with these values; what is absent keeps its default.

        Raises:
          ValueError: naming the field, its value and the allowed range.
        """
        sections = {}
        for name, section in _SECTIONS_BY_FIELD.items():
            known = [field.name for field in dataclasses.fields(section)]  # type: ignore[arg-type]
            sections[name] = section(**{key: values[key] for key in known if key in values})
        return cls(**sections)  # type: ignore[arg-type]


_SECTIONS_BY_FIELD: dict[str, type[Section]] = get_type_hints(Config)
SECTIONS = tuple(_SECTIONS_BY_FIELD.values())
EVALUATION_SECTIONS = (TaskConfig, ExecutionConfig, ModelConfig, SamplingConfig)
"""What matters where nothing is learnt."""
MAY_DIFFER = frozenset(
    field.name
    for section in SECTIONS
    for field in dataclasses.fields(section)  # type: ignore[arg-type]
    if field.metadata["may_differ"]
)


def define_flags(
    flag_values: flags.FlagValues = flags.FLAGS, sections: tuple[type[Section], ...] = SECTIONS
) -> None:
    """Registers one flag per field of `sections` as key flags of the calling program."""
    for section in sections:
        hints = get_type_hints(section)
        for field in dataclasses.fields(section):  # type: ignore[arg-type]
            _define(field, hints[field.name], flag_values)


def _define(field: dataclasses.Field, hint: Any, flag_values: flags.FlagValues) -> None:
    help_text = field.metadata["help"]
    arguments = {"name": field.name, "default": field.default, "help": help_text}
    arguments["flag_values"] = flag_values
    if field.metadata["choices"]:
        flags.DEFINE_enum(enum_values=list(field.metadata["choices"]), **arguments)
    elif hint in (bool,):
        flags.DEFINE_bool(**arguments)
    elif hint in (int, int | None):
        flags.DEFINE_integer(**arguments)
    elif hint in (float, float | None):
        flags.DEFINE_float(**arguments)
    else:
        flags.DEFINE_string(**arguments)


def from_flags(
    flag_values: flags.FlagValues = flags.FLAGS, *, defaults: Mapping[str, Any] | None = None
) -> Config:
    """The configuration that the parsed flags describe.

    Args:
      defaults: values of flags that the command line does not give, such as a run's `config.json`.

    Raises:
      UsageError: naming the flag, its value and the allowed range.
    """
    names = [name for name in Config().to_dict() if name in flag_values]
    given = {
        name: flag_values[name].value
        for name in names
        if defaults is None or flag_values[name].present
    }
    try:
        return Config.from_dict({**(defaults or {}), **given})
    except ValueError as error:
        raise UsageError(str(error)) from error


def hosts_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> HostsConfig:
    """The hosts that the parsed flags describe.

    Raises:
      UsageError: naming the flag, its value and the allowed range.
    """
    names = [field.name for field in dataclasses.fields(HostsConfig)]
    try:
        values: dict[str, Any] = {name: flag_values[name].value for name in names}
        return HostsConfig(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error
