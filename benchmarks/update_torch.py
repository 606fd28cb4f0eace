"""One ETPO update in eager PyTorch: what `benchmarks.update` measures against.

The same mathematics written as PyTorch code usually is: modules, fused attention, autograd, a fused
AdamW. What the measured settings make void is left out: temperature 1, no support mask, no Huber.
Weights come from, and go back to, the trees of `models.convert`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etpo_jax.acting.transitions import Batch
from etpo_jax.config import Config
from models.config import DecoderConfig
from models.rope import inverse_frequencies


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key heads."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.groups = config.num_heads // config.num_kv_heads
        self.head_dim = config.head_dim
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q = nn.Linear(config.hidden_size, queries, bias=False)
        self.k = nn.Linear(config.hidden_size, keys, bias=False)
        self.v = nn.Linear(config.hidden_size, keys, bias=False)
        self.o = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = _rotate(self.q(x).view(heads).transpose(1, 2), cos, sin)
        k = _rotate(self.k(x).view(heads).transpose(1, 2), cos, sin)
        v = self.v(x).view(heads).transpose(1, 2)
        k, v = (part.repeat_interleave(self.groups, dim=1) for part in (k, v))
        summed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(summed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The SwiGLU feed-forward network."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """The Llama-family decoder without adapters, biases and tied embeddings.

    Args:
      config: sizes and constants.
      params: weights as a tree of NumPy arrays.
      value: weights of a scalar head on the last hidden state; None without one.
      offset: what that head, or without one every state, is worth on top.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: dict,
        *,
        value: np.ndarray | None = None,
        offset: float = 0.0,
    ):
        super().__init__()
        frequencies = torch.from_numpy(inverse_frequencies(config))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embedder = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.value = None if value is None else nn.Parameter(_copy(value))
        self.offset = nn.Parameter(torch.tensor(offset))
        with torch.no_grad():
            for parameter, path, layer in self._places():
                leaf = params
                for name in path:
                    leaf = leaf[name]
                array = leaf if layer is None else leaf[layer]
                parameter.copy_(_copy(array.T if path[-1] == "kernel" else array))

    def hidden(self, tokens_bs: Tensor, mask_bs: Tensor) -> Tensor:
        """Hidden states [b, s, d] after the final norm."""
        positions_bs = torch.where(mask_bs, mask_bs.cumsum(1) - 1, 0)
        angle = positions_bs[:, None, :, None] * self.frequencies
        length = tokens_bs.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        itself = torch.eye(length, dtype=torch.bool)
        mask = (causal & mask_bs[:, None, :] & mask_bs[:, :, None]) | itself
        x = self.embedder(tokens_bs)
        for layer in self.layers:
            x = layer(x, angle.cos(), angle.sin(), mask[:, None])
        return self.final_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """v(h) of a dueling critic, b0 otherwise."""
        if self.value is None:
            return self.offset.expand(hidden.shape[:-1])
        return self.offset + hidden @ self.value

    def tree(self, values: dict[Tensor, Tensor]) -> dict[str, Any]:
        """One value of every parameter of the trunk as the tree that its weights came from."""
        tree: dict[str, Any] = {}
        for parameter, path, layer in self._places():
            *parents, name = path
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            value = values[parameter].detach()
            array = (value.T if name == "kernel" else value).numpy().copy()
            if layer is not None:
                array = np.stack([*node.get(name, ()), array])
            node[name] = array
        return tree

    def _places(self) -> Iterator[tuple[nn.Parameter, tuple[str, ...], int | None]]:
        """Parameters of the trunk with their place in the tree, layers in order."""
        leaves = {"embedder": "embedding", "lm_head": "kernel", "final_norm": "scale"}
        for name, leaf in leaves.items():
            yield getattr(self, name).weight, (name, leaf), None
        for layer, block in enumerate(self.layers):
            for name, parameter in block.named_parameters():
                *path, _ = name.split(".")
                leaf = "scale" if path[-1].endswith("norm") else "kernel"
                yield parameter, ("layers", *path, leaf), layer


class Update:
    """The four networks with their optimisers; a call takes one step.

    Args:
      config: `critic_loss` and `q_parameterization` are path with dueling, or one_step or retrace
        with residual.
      decoder: sizes of every network.
      base: weights of the reference.
      state: the `TrainState` to start from; arrays are copied.
      batch: what every step learns from.
    """

    def __init__(self, config: Config, decoder: DecoderConfig, base: Any, state: Any, batch: Batch):
        learning, optimizer = config.learning, config.optimizer
        self._learning = learning
        self._clip_norm = optimizer.clip_norm
        self._is_path = learning.critic_loss == "path"
        self.reference = Decoder(decoder, base).requires_grad_(False)
        self.policy = Decoder(decoder, state.policy["params"])
        self.policy.offset.requires_grad_(False)
        self.critic, self.target_critic = (
            Decoder(
                decoder,
                critic.trunk["params"],
                value=critic.value,
                offset=float(critic.offset),
            )
            for critic in (state.critic, state.target_critic)
        )
        self.target_critic.requires_grad_(False)
        self.policy_optimizer, self.critic_optimizer = (
            torch.optim.AdamW(
                [parameter for parameter in network.parameters() if parameter.requires_grad],
                lr=learning_rate,
                betas=(optimizer.adam_b1, optimizer.adam_b2),
                eps=optimizer.adam_eps,
                weight_decay=optimizer.weight_decay,
                fused=True,
            )
            for network, learning_rate in (
                (self.policy, optimizer.policy_learning_rate),
                (self.critic, optimizer.critic_learning_rate),
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
        """One gradient step; the metrics of `etpo_jax.algorithms.etpo` before it."""
        learning, beta = self._learning, self._learning.beta
        with torch.no_grad():
            reference_bjd = self._action_hidden(self.reference)
            reference_logits = self.reference.lm_head(reference_bjd)
            reference = reference_logits.log_softmax(-1)
            target_b = self._final_target()
        critic_hidden = self._action_hidden(self.critic)
        critic_logits = self.critic.lm_head(critic_hidden)
        head_bj = self.critic.head(critic_hidden)
        policy = self.policy.lm_head(self._action_hidden(self.policy)).log_softmax(-1)
        probs = policy.exp()
        kl_bj = (probs * (policy - reference)).sum(-1)
        with torch.no_grad():
            entropy_bj = -(probs * policy).sum(-1)
        if self._is_path:
            ratio = critic_logits.log_softmax(-1) - reference
            q = head_bj[..., None] + beta * ratio
            taken_bj = torch.where(self._mask_bj, self._taken(ratio), 0.0)
            suffix_bj = taken_bj.flip(1).cumsum(1).flip(1)
            error_bj = head_bj + beta * suffix_bj - target_b[:, None]
            critic_loss = self._mean(error_bj.square())
            target_mean = target_b.mean()
        else:
            q = head_bj[..., None] + beta * (critic_logits - reference_logits)
            with torch.no_grad():
                target_bj = self._token_targets(policy, probs, kl_bj, reference_logits, target_b)
            critic_loss = self._mean(0.5 * (self._taken(q) - target_bj).square())
            target_mean = self._mean(target_bj)
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
            self.policy_optimizer.step()
            self.critic_optimizer.step()
            with torch.no_grad():
                for old, new in zip(
                    self.target_critic.parameters(), self.critic.parameters(), strict=True
                ):
                    old.lerp_(new, 1.0 - learning.polyak_lambda)
        self.policy_optimizer.zero_grad()
        self.critic_optimizer.zero_grad()
        return metrics | {"is_finite": is_finite.float()}

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

    def _action_hidden(self, network: Decoder) -> Tensor:
        return network.hidden(*self._sequence)[:, self._first : -1]

    def _next_hidden(self, network: Decoder) -> Tensor:
        return network.hidden(*self._next_prompt)[:, -1]

    def _final_target(self) -> Tensor:
        """r + gamma * continues * V'_0, what the last token of an action is worth."""
        beta = self._learning.beta
        critic_bd = self._next_hidden(self.target_critic)
        value_b = self.target_critic.head(critic_bd)
        if not self._is_path:
            # Of pi; under the dueling critic the head is the value of the policy that Q implies.
            reference_bv = self.reference.lm_head(self._next_hidden(self.reference))
            q_bv = value_b[:, None] + beta * (self.target_critic.lm_head(critic_bd) - reference_bv)
            policy_bv = self.policy.lm_head(self._next_hidden(self.policy)).log_softmax(-1)
            ratio_bv = policy_bv - reference_bv.log_softmax(-1)
            value_b = (policy_bv.exp() * (q_bv - beta * ratio_bv)).sum(-1)
        return self._reward_b + self._learning.gamma * self._continues_b * value_b

    def _token_targets(
        self,
        policy: Tensor,
        probs: Tensor,
        kl_bj: Tensor,
        reference_logits: Tensor,
        final_b: Tensor,
    ) -> Tensor:
        """One-step or Retrace targets [b, j]."""
        learning = self._learning
        hidden = self._action_hidden(self.target_critic)
        difference = self.target_critic.lm_head(hidden) - reference_logits
        q = self.target_critic.head(hidden)[..., None] + learning.beta * difference
        value_bj = (probs * q).sum(-1) - learning.beta * kl_bj
        shifted_mask = F.pad(self._mask_bj[:, 1:], (0, 1))
        is_last_bj = self._mask_bj & ~shifted_mask
        if learning.critic_loss == "one_step":
            shifted_bj = F.pad(value_bj[:, 1:], (0, 1))
            target_bj = torch.where(
                is_last_bj, final_b[:, None], learning.gamma_within * shifted_bj
            )
            return torch.where(self._mask_bj, target_bj, 0.0)
        trace_bj = (self._taken(policy) - self._log_probs_bj).clamp(max=0.0).exp()
        trace_bj = learning.lambda_within * trace_bj
        # V + trace * (G - Q) = (V - trace * Q) + trace * G: fewer operations in the loop.
        constant_bj = value_bj - trace_bj * self._taken(q)
        columns = (is_last_bj, constant_bj, trace_bj)
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
        """Over real tokens."""
        return torch.where(self._mask_bj, values_bj, 0.0).sum() / self._mask_bj.sum()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _copy(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array))
