"""Sampling from a tilted policy with Hugging Face's `generate`; copied beside exported weights.

The weights alone are not the policy: its probabilities also depend on those of the reference, the
model that was trained.

    reference = AutoModelForCausalLM.from_pretrained(...)   # the model that was trained
    policy = AutoModelForCausalLM.from_pretrained("tuned")
    tilt = TiltProcessor("tuned/tilt.json", reference, attention_mask)
    policy.generate(input_ids, attention_mask=attention_mask, do_sample=True,
                    temperature=tilt.temperature, top_k=0, logits_processor=[tilt])

Needs torch and transformers alone. For sampling, not for beam search.
"""

import json
import pathlib

import torch
from transformers import LogitsProcessor

MASKED = -1e9


class TiltProcessor(LogitsProcessor):
    """Adds the tilt to a policy's logits, and masks tokens outside the reference's support.

    Attributes:
      temperature: temperature of the policy, to be given to `generate` as well.
    """

    def __init__(self, path, reference, attention_mask):
        """Prepares one call of `generate`.

        Args:
          path: `tilt.json` of the exported folder.
          reference: the model that was trained, on the device of the policy.
          attention_mask: [b, p], that of the prompts.
        """
        values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        self.temperature = values["temperature"]
        self._threshold = values["support_threshold"]
        self._coefficients = values["coefficients"]
        self._statistics = values["statistics"]
        self._reference = reference
        self._prompt_mask = attention_mask

    @torch.no_grad()
    def __call__(self, input_ids, scores):
        """Logits [b, v] whose softmax at `temperature` is the policy."""
        rho = self._reference_logits(input_ids) / self.temperature
        probabilities = rho.softmax(-1)
        most = probabilities.max(-1, keepdim=True).values
        support = probabilities >= most.clamp(max=self._threshold)
        log_rho = rho.masked_fill(~support, MASKED).log_softmax(-1)
        entropy = -(log_rho.exp() * log_rho).sum(-1, keepdim=True)
        statistics = [*self._functions(log_rho), *self._functions(log_rho + entropy)]
        tilt = sum(c * s for c, s in zip(self._coefficients, statistics, strict=True))
        scores = scores.float() + self.temperature * tilt
        return scores.masked_fill(~support, MASKED)

    def _functions(self, x):
        x = x.clamp(min=self._statistics["lowest"])
        width = self._statistics["step_width"]
        hinges = [(x - edge).clamp(max=0.0) for edge in self._statistics["hinges"]]
        steps = [((x - edge) / width).clamp(-1.0, 0.0) for edge in self._statistics["steps"]]
        return [*hinges, *steps]

    def _reference_logits(self, input_ids):
        """The reference's logits after the last token; whole sequences, without a cache."""
        new = input_ids.shape[1] - self._prompt_mask.shape[1]
        repeats = input_ids.shape[0] // self._prompt_mask.shape[0]
        mask = self._prompt_mask.repeat_interleave(repeats, 0)
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], new)], dim=1)
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        found = self._reference(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False
        )
        return found.logits[:, -1].float()
