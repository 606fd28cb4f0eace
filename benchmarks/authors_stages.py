"""The stages of the authors' implementation in PyTorch, rewritten from the paper's description.

Generation with `generate` of transformers; then three networks score the actions and their logits
are copied to the host; targets are computed there, token by token, in a Python loop; then policy
and critic take a step of Lion with the uniform policy loss, and the target critic follows. This is
the peer of `benchmarks.iteration`.
"""

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from etpo_jax.config import Config

_CLIP, _HUBER = 10.0, 10.0


class AuthorsStages:
    """Four networks and the stages of one iteration.

    Attributes:
      traffic: bytes that were copied between host and device.
    """

    def __init__(self, folder: str, config: Config, device: str, stop_id: int, pad_id: int):
        """Reads the model in a Hugging Face folder four times."""
        transformers.utils.logging.disable_progress_bar()
        dtype = getattr(torch, config.model.compute_dtype)
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        self._reference = load(folder, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        self._policy, self._critic = (copy.deepcopy(self._reference) for _ in range(2))
        self._target = copy.deepcopy(self._reference)
        for network in (self._reference, self._target):
            network.requires_grad_(False)
        self._momenta = {
            id(parameter): torch.zeros_like(parameter)
            for network in (self._policy, self._critic)
            for parameter in network.parameters()
        }
        self._config = config
        self._device = device
        self._stop_id, self._pad_id = stop_id, pad_id
        self.traffic = 0

    def generate(self, tokens_bp: np.ndarray) -> np.ndarray:
        """Action tokens [b, j] of full length."""
        sampling = self._config.sampling
        tokens = self._to_device(tokens_bp.astype(np.int64))
        with torch.inference_mode():
            generated = self._policy.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=sampling.top_k or None,
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
                min_new_tokens=sampling.max_new_tokens,
                eos_token_id=self._stop_id,
                pad_token_id=self._pad_id,
            )
        return self._to_host(generated[:, tokens.shape[1] :])

    def targets(
        self,
        prompt_bp: np.ndarray,
        action_bj: np.ndarray,
        reward_b: np.ndarray,
        next_prompt_bp: np.ndarray,
        continues_b: np.ndarray,
    ) -> np.ndarray:
        """Soft Bellman targets [b, j]: logits come to the host, a loop visits every token.

        The value of the next prompt is added to the reward where the episode continues.
        """
        scores = self._score(np.concatenate([prompt_bp, action_bj], axis=1), action_bj.shape[1])
        next_scores = self._score(next_prompt_bp, 0)
        learning = self._config.learning
        targets_bj = np.zeros(action_bj.shape, np.float32)
        for row in range(action_bj.shape[0]):
            following = reward_b[row]
            if continues_b[row]:
                following += learning.gamma * self._value(
                    [logits[row, 0] for logits in next_scores]
                )
            for j in reversed(range(action_bj.shape[1])):
                targets_bj[row, j] = following
                value = self._value([logits[row, j] for logits in scores])
                following = learning.gamma_within * value
        return targets_bj

    def _score(self, tokens_bs: np.ndarray, num_actions: int) -> list[np.ndarray]:
        """Logits of policy, reference and target critic for the last tokens and what follows."""
        tokens = self._to_device(tokens_bs.astype(np.int64))
        scored = []
        with torch.inference_mode():
            for network in (self._policy, self._reference, self._target):
                logits = network(tokens, logits_to_keep=num_actions + 1).logits
                scored.append(self._to_host(logits[:, : num_actions or 1].float()))
        return scored

    def _value(self, logits: list[np.ndarray]) -> float:
        """Soft value of one position from the logits of policy, reference and target critic."""
        policy, reference, target_q = logits
        log_pi = _log_softmax(policy)
        pi = np.exp(log_pi)
        return pi @ target_q - self._config.learning.beta * (
            pi @ (log_pi - _log_softmax(reference))
        )

    def update(
        self, prompt_bp: np.ndarray, action_bj: np.ndarray, targets_bj: np.ndarray
    ) -> dict[str, float]:
        """One step of both networks and the target critic; their losses."""
        tokens = self._to_device(np.concatenate([prompt_bp, action_bj], axis=1).astype(np.int64))
        targets = self._to_device(targets_bj)
        first = prompt_bp.shape[1] - 1
        actions = tokens[:, first + 1 :, None]
        q = self._critic(tokens).logits[:, first:-1].float()
        critic_loss = F.huber_loss(q.gather(-1, actions)[..., 0], targets, delta=_HUBER)
        critic_loss.backward()
        q = q.detach()
        log_pi = self._policy(tokens).logits[:, first:-1].float().log_softmax(-1)
        policy_loss = (self._config.learning.beta * log_pi - q).mean()
        policy_loss.backward()
        learning = self._config.learning
        self._lion(self._critic, learning.critic_learning_rate)
        self._lion(self._policy, learning.policy_learning_rate)
        with torch.no_grad():
            keep = learning.polyak_lambda
            old, new = list(self._target.parameters()), list(self._critic.parameters())
            torch._foreach_lerp_(old, new, 1 - keep)
        return {"critic_loss": critic_loss.item(), "policy_loss": policy_loss.item()}

    def synchronize(self) -> None:
        """Waits for the device."""
        if self._device != "cpu":
            torch.cuda.synchronize()

    def _lion(self, network: Any, rate: float) -> None:
        settings = self._config.learning.optimizer_settings[1]
        b1, b2 = settings["b1"], settings["b2"]
        torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        with torch.no_grad():
            for parameter in network.parameters():
                momentum, gradient = self._momenta[id(parameter)], parameter.grad
                parameter.sub_(torch.sign(momentum.lerp(gradient, 1 - b1)), alpha=rate)
                momentum.lerp_(gradient, 1 - b2)
                parameter.grad = None

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        self.traffic += array.nbytes
        return torch.from_numpy(array).to(self._device)

    def _to_host(self, tensor: torch.Tensor) -> np.ndarray:
        array = tensor.cpu().numpy()
        self.traffic += array.nbytes
        return array


def _log_softmax(logits_v: np.ndarray) -> np.ndarray:
    shifted = logits_v - logits_v.max()
    return shifted - np.log(np.exp(shifted).sum())
