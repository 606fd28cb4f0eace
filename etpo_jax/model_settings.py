"""Sections of `etpo_jax.config` for the model: precision, memory and what is trained."""

import dataclasses
from typing import Any

from etpo_jax.settings import Section, option, parse_choice
from models.attention import IMPLEMENTATIONS
from models.lora import TARGETS, LoraConfig
from models.precision import PRECISIONS
from models.transformer import REMAT


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """Model: the language model, its precision and where it lies."""

    model: str = option(
        "tiny",
        "Hugging Face folder or repository (org/name) of a Llama-family model, or tiny, the "
        "stand-in that is part of this package. With --endpoint the name of the model there.",
    )
    dtype: str = option(
        "float32",
        "Precision of the model's computations, float32 or bfloat16. float32:precision=highest "
        f"also names the precision of matrix products, one of {', '.join(PRECISIONS)}: default "
        "computes them with TF32 on NVIDIA GPUs and bfloat16 on TPUs, highest with float32 "
        "everywhere.",
    )
    mesh: str = option(
        "",
        "Devices along each mesh axis, such as fsdp:4,tensor:2; empty puts all on fsdp.",
        may_differ=True,
    )
    max_prompt_length: int = option(
        256, "Tokens of a prompt at most; longer prompts are shortened by the task.", lower=8
    )
    attention: str = option(
        "reference",
        "Attention: our own (reference), XLA's (xla), cuDNN's on NVIDIA GPUs in 16 bits (cudnn) or "
        "a Pallas kernel on TPUs (splash), which has one for decoding too.",
        choices=IMPLEMENTATIONS,
        may_differ=True,
    )
    remat: str = option(
        "full",
        "Activations that backward passes recompute instead of keeping them: none, dots (all but "
        "matrix products) or full. With logits=N after a colon, as in full:logits=64, the logits "
        "of N action positions exist at the same time in a gradient step; the default is all.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matmul_precision not in PRECISIONS:
            raise ValueError(
                f"--dtype={self.dtype}: precision must be one of {', '.join(PRECISIONS)}"
            )
        if self._parsed_remat[1].get("logits", 1) < 1:
            raise ValueError(f"--remat={self.remat}: logits must be >= 1")

    @property
    def compute_dtype(self) -> str:
        """Type of the model's computations: float32 or bfloat16."""
        return self._parsed_dtype[0]

    @property
    def matmul_precision(self) -> str:
        """Precision of float32 matrix products, one of `models.precision.PRECISIONS`."""
        precision: str = self._parsed_dtype[1].get("precision", "default")
        return precision

    @property
    def rematerialized(self) -> str:
        """What backward passes recompute: one of `models.transformer.REMAT`."""
        return self._parsed_remat[0]

    @property
    def logits_at_once(self) -> int:
        """Action positions whose logits exist at the same time in a gradient step; 0 is all."""
        return self._parsed_remat[1].get("logits", 0)

    @property
    def _parsed_dtype(self) -> tuple[str, dict[str, Any]]:
        kinds: dict[str, dict[str, type]] = {"float32": {"precision": str}, "bfloat16": {}}
        return parse_choice("dtype", self.dtype, kinds)

    @property
    def _parsed_remat(self) -> tuple[str, dict[str, Any]]:
        kinds: dict[str, dict[str, type]] = {name: {"logits": int} for name in REMAT}
        return parse_choice("remat", self.remat, kinds)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Section):
    """Fine-tuning: which weights are trained, in which precision, and what saves memory."""

    finetune: str = option(
        "full",
        "full trains a copy of all weights for each network; lora trains adapters over one shared "
        "frozen base. Settings follow a colon: full:dtype=bfloat16 stores the trained weights in "
        "bfloat16 with stochastic rounding (the default is float32; adapters and the target critic "
        "are always float32), lora:rank=16,alpha=32,targets=q+v names the sizes of the adapters "
        f"and the kernels that have one, among {'+'.join(TARGETS)}. tilt=0.03, for either, trains "
        "ten numbers that tilt every distribution by functions of the reference's probabilities, "
        "with this learning rate (docs/algorithm.md); 0 is none.",
    )
    microbatch_size: int = option(
        0,
        "Transitions of a minibatch that are on the device at once, their gradients accumulated; "
        "0 is all of them.",
        lower=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--finetune={self.finetune}: dtype must be float32 or bfloat16")
        if self.tilt_learning_rate < 0:
            raise ValueError(f"--finetune={self.finetune}: tilt must be >= 0")
        try:
            _ = self.adapters
        except ValueError as error:
            raise ValueError(f"--finetune={self.finetune}: {error}") from error

    @property
    def trained_dtype(self) -> str:
        """Storage of the weights that are trained: float32 or bfloat16."""
        return self._parsed[1].get("dtype", "float32")

    @property
    def tilt_learning_rate(self) -> float:
        """Learning rate of the coefficients of the tilt; 0 if there are none."""
        return self._parsed[1].get("tilt", 0.0)

    @property
    def adapters(self) -> LoraConfig | None:
        """Sizes of the adapters, None for full fine-tuning."""
        kind, options = self._parsed
        if kind == "full":
            return None
        targets = options.get("targets", "+".join(TARGETS)).split("+")
        names = tuple(name.strip() for name in targets)
        return LoraConfig(options.get("rank", 16), options.get("alpha", 32.0), names)

    @property
    def _parsed(self) -> tuple[str, dict[str, Any]]:
        kinds: dict[str, dict[str, type]] = {
            "full": {"dtype": str, "tilt": float},
            "lora": {"rank": int, "alpha": float, "targets": str, "tilt": float},
        }
        return parse_choice("finetune", self.finetune, kinds)
