"""One ETPO update in eager PyTorch, the peer that `benchmarks.gradient_step` measures against.

The mathematics of `etpo_jax.algorithms.etpo` as PyTorch code usually is: the Llama of transformers,
fused attention, autograd, a fused AdamW. Parts that the measured settings switch off are left out:
other temperatures than 1, the support mask, the Huber loss and the trust region.
"""

import copy
import tempfile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import models
from etpo_jax.acting.transitions import Batch
from etpo_jax.config import Config
from models.config import DecoderConfig


class Network(nn.Module):
    """A Llama of transformers with the scalar head of a critic.

    Args:
      config: sizes of the decoder.
      params: weights as a tree of NumPy arrays, as `models.save` takes it.
      value: weights of the scalar head on the last hidden state; None for a head that is constant.
      offset: constant of the head.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Any,
        *,
        value: np.ndarray | None = None,
        offset: float = 0.0,
    ):
        super().__init__()
        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            models.save(folder, config, params)
            self.llama = transformers.LlamaForCausalLM.from_pretrained(
                folder, attn_implementation="sdpa", dtype=torch.float32
            )
        self.lm_head = self.llama.lm_head
        self.value = None if value is None else nn.Parameter(_copy(value))
        self.offset = nn.Parameter(torch.tensor(offset))

    def hidden(self, tokens_bs: Tensor, mask_bs: Tensor) -> Tensor:
        """Hidden states [b, s, d] after the final norm."""
        positions_bs = torch.where(mask_bs, mask_bs.cumsum(1) - 1, 0)
        length = tokens_bs.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # Padding attends to itself, so that no row of the softmax is empty.
        itself = torch.eye(length, dtype=torch.bool)
        mask = (causal & mask_bs[:, None, :] & mask_bs[:, :, None]) | itself
        return self.llama.model(
            input_ids=tokens_bs,
            attention_mask=mask[:, None],
            position_ids=positions_bs,
            use_cache=False,
        ).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """State value v(h) of a dueling critic, the constant b0 otherwise."""
        if self.value is None:
            return self.offset.expand(hidden.shape[:-1])
        return self.offset + hidden @ self.value

    def tree(self, values: dict[Tensor, Tensor]) -> Any:
        """The tree of `models.load` with these values in place of the decoder's parameters."""
        other = copy.deepcopy(self.llama)
        with torch.no_grad():
            for old, new in zip(self.llama.parameters(), other.parameters(), strict=True):
                new.copy_(values[old])
        with tempfile.TemporaryDirectory() as folder:
            other.save_pretrained(folder)
            return models.load(folder)[1]


class Update:
    """The four networks with their optimisers; every call takes one gradient step.

    Args:
      config: `critic_loss` and `q_parameterization` are path with dueling, or one_step or retrace
        with residual.
      decoder: sizes of every network.
      base: weights of the reference.
      state: the `TrainState` at the start; arrays are copied.
      batch: transitions that every step learns from.
    """

    def __init__(self, config: Config, decoder: DecoderConfig, base: Any, state: Any, batch: Batch):
        learning = config.learning
        settings = learning.optimizer_settings[1]
        self._learning = learning
        self._clip_norm = settings["clip_norm"]
        self._is_path = learning.regression == "path"
        self.reference = Network(decoder, base).requires_grad_(False)
        self.policy = Network(decoder, state.policy["params"])
        self.policy.offset.requires_grad_(False)
        self.critic, self.target_critic = (
            Network(
                decoder, critic.trunk["params"], value=critic.value, offset=float(critic.offset)
            )
            for critic in (state.critic, state.target_critic)
        )
        self.target_critic.requires_grad_(False)
        self.policy_optimizer, self.critic_optimizer = (
            torch.optim.AdamW(
                [parameter for parameter in network.parameters() if parameter.requires_grad],
                lr=learning_rate,
                betas=(settings["b1"], settings["b2"]),
                eps=settings["eps"],
                weight_decay=settings["weight_decay"],
                fused=True,
            )
            for network, learning_rate in (
                (self.policy, learning.policy_learning_rate),
                (self.critic, learning.critic_learning_rate),
            )
        )
        self._mask_bj = _copy(batch.action_mask_bj)
        self._tokens_bj1 = _copy(batch.action_tokens_bj).long()[..., None]
        self._log_probs_bj = _copy(batch.log_probs_bj)
        self._reward_b, self._continues_b = _copy(batch.reward_b), _copy(batch.continues_b)
        prompt = _copy(batch.prompt_tokens_bp), _copy(batch.prompt_mask_bp)
        self._sequence = (
            torch.cat([prompt[0], self._tokens_bj1[..., 0]], dim=1),
            torch.cat([prompt[1], self._mask_bj], dim=1),
        )
        self._first = prompt[0].shape[1] - 1
        self._next_prompt = _copy(batch.next_prompt_tokens_bp), _copy(batch.next_prompt_mask_bp)

    def __call__(self) -> dict[str, Tensor]:
        """Takes one gradient step and returns the metrics of `etpo_jax.algorithms.etpo`."""
        beta = self._learning.beta
        with torch.no_grad():
            reference_logits = self.reference.lm_head(self._action_hidden(self.reference))
            reference = reference_logits.log_softmax(-1)
        policy = self.policy.lm_head(self._action_hidden(self.policy)).log_softmax(-1)
        probs = policy.exp()
        kl_bj = (probs * (policy - reference)).sum(-1)
        with torch.no_grad():
            entropy_bj = -(probs * policy).sum(-1)
        lose = self._path_loss if self._is_path else self._token_loss
        critic_loss, q, target_mean = lose(reference_logits, policy.detach(), kl_bj.detach())
        policy_loss = self._mean(beta * kl_bj - (probs * q.detach()).sum(-1))
        (critic_loss + policy_loss).backward()
        norms = {}
        for name, optimizer in (
            ("policy_grad_norm", self.policy_optimizer),
            ("critic_grad_norm", self.critic_optimizer),
        ):
            parameters = optimizer.param_groups[0]["params"]
            norms[name] = nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        metrics = {
            "critic_loss": critic_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "target_mean": target_mean,
            "kl_to_reference": torch.where(self._mask_bj, kl_bj.detach(), 0.0).sum(1).mean(),
            "entropy": torch.where(self._mask_bj, entropy_bj, 0.0).sum(1).mean(),
            **norms,
        }
        is_finite = torch.stack(list(metrics.values())).isfinite().all()
        if is_finite:
            self._step()
        self.policy_optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        return metrics | {"is_finite": is_finite.float()}

    def _step(self) -> None:
        self.policy_optimizer.step()
        self.critic_optimizer.step()
        with torch.no_grad():
            old, new = tuple(self.target_critic.parameters()), tuple(self.critic.parameters())
            torch._foreach_lerp_(old, new, 1.0 - self._learning.polyak_lambda)

    def _path_loss(
        self, reference_logits: Tensor, policy: Tensor, kl_bj: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared path errors of all suffixes; the loss, Q and the mean target."""
        del policy, kl_bj
        beta = self._learning.beta
        with torch.no_grad():
            target_b = self._final_target()
        hidden = self._action_hidden(self.critic)
        head_bj = self.critic.head(hidden)
        logits = self.critic.lm_head(hidden)
        ratio = logits.log_softmax(-1) - reference_logits.log_softmax(-1)
        taken_bj = torch.where(self._mask_bj, self._taken(ratio), 0.0)
        suffix_bj = taken_bj.flip(1).cumsum(1).flip(1)
        error_bj = head_bj + beta * suffix_bj - target_b[:, None]
        return self._mean(error_bj.square()), head_bj[..., None] + beta * ratio, target_b.mean()

    def _token_loss(
        self, reference_logits: Tensor, policy: Tensor, kl_bj: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared errors of sampled tokens; the loss, Q and the mean target."""
        with torch.no_grad():
            target_bj = self._token_targets(policy, kl_bj, reference_logits)
        q = self._residual_q(self.critic, reference_logits)
        loss = self._mean(0.5 * (self._taken(q) - target_bj).square())
        return loss, q, self._mean(target_bj)

    def _residual_q(self, network: Network, reference_logits: Tensor) -> Tensor:
        hidden = self._action_hidden(network)
        difference = network.lm_head(hidden) - reference_logits
        return network.head(hidden)[..., None] + self._learning.beta * difference

    def moments(self) -> dict[str, Any]:
        """AdamW's first moments, in the trees that the weights came from."""
        policy, critic = (
            {key: state["exp_avg"] for key, state in optimizer.state.items()}
            for optimizer in (self.policy_optimizer, self.critic_optimizer)
        )
        value = self.critic.value
        parts = {
            "trunk": self.critic.tree(critic),
            "offset": critic[self.critic.offset].numpy().copy(),
            "value": None if value is None else critic[value].numpy().copy(),
        }
        return {"policy": self.policy.tree(policy), "critic": parts}

    def _action_hidden(self, network: Network) -> Tensor:
        return network.hidden(*self._sequence)[:, self._first : -1]

    def _next_hidden(self, network: Network) -> Tensor:
        return network.hidden(*self._next_prompt)[:, -1]

    def _final_target(self) -> Tensor:
        """Target r + gamma * continues * V'_0 of the last token of an action."""
        beta = self._learning.beta
        critic_bd = self._next_hidden(self.target_critic)
        value_b = self.target_critic.head(critic_bd)
        if not self._is_path:
            # The soft value of pi; a dueling critic's head is already that of the policy Q implies.
            reference_bv = self.reference.lm_head(self._next_hidden(self.reference))
            q_bv = value_b[:, None] + beta * (self.target_critic.lm_head(critic_bd) - reference_bv)
            policy_bv = self.policy.lm_head(self._next_hidden(self.policy)).log_softmax(-1)
            ratio_bv = policy_bv - reference_bv.log_softmax(-1)
            value_b = (policy_bv.exp() * (q_bv - beta * ratio_bv)).sum(-1)
        return self._reward_b + self._learning.gamma * self._continues_b * value_b

    def _token_targets(self, policy: Tensor, kl_bj: Tensor, reference_logits: Tensor) -> Tensor:
        """Retrace targets [b, j]; one-step targets are those with a trace of 0."""
        learning = self._learning
        q = self._residual_q(self.target_critic, reference_logits)
        value_bj = (policy.exp() * q).sum(-1) - learning.beta * kl_bj
        is_last_bj = self._mask_bj & ~F.pad(self._mask_bj[:, 1:], (0, 1))
        lambda_within = 0.0 if learning.regression == "one_step" else learning.lambda_within
        trace_bj = (self._taken(policy) - self._log_probs_bj).clamp(max=0.0).exp() * lambda_within
        # V + trace * (G - Q) = (V - trace * Q) + trace * G: fewer operations in the loop.
        constant_bj = value_bj - trace_bj * self._taken(q)
        columns = (is_last_bj, constant_bj, trace_bj)
        final_b = self._final_target()
        carry_b, targets = torch.zeros_like(final_b), []
        for is_last_b, constant_b, trace_b in zip(
            *(column.unbind(1)[::-1] for column in columns), strict=True
        ):
            target_b = torch.where(is_last_b, final_b, learning.gamma_within * carry_b)
            carry_b = torch.addcmul(constant_b, trace_b, target_b)
            targets.append(target_b)
        return torch.where(self._mask_bj, torch.stack(targets[::-1], dim=1), 0.0)

    def _taken(self, values: Tensor) -> Tensor:
        return values.gather(-1, self._tokens_bj1)[..., 0]

    def _mean(self, values_bj: Tensor) -> Tensor:
        """Mean over real tokens."""
        return torch.where(self._mask_bj, values_bj, 0.0).sum() / self._mask_bj.sum()


def _copy(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))
