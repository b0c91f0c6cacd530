"""Questions as turns of a chat, by lm-eval's rules, and prompts as token ids that never begin with two BOS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from transformers import PreTrainedTokenizerBase

from unlearn.errors import UserError


@dataclass(frozen=True)
class Chat:
    """How lm-eval makes chats of questions.

    Args:
        render: messages -> text, in the tokenizer's template.
        system_instruction: a message before the task's own description.
        multiturn: whether few-shot examples are turns of their own.
    """

    render: Callable[..., str]
    system_instruction: str | None = None
    multiturn: bool = True

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, system_instruction: str | None, multiturn: bool) -> Chat:
        """Chats in a tokenizer's own template. Raises UserError if it has none."""
        if not tokenizer.chat_template:
            raise UserError("eval.chat_template=true, but the model's tokenizer has no chat template.")
        of_tokenizer = SimpleNamespace(tokenizer=tokenizer, chat_template_args={})
        return cls(partial(HFLM.apply_chat_template, of_tokenizer), system_instruction, multiturn)

    def arguments(self) -> Mapping[str, Any]:
        """The arguments for lm-eval's `build_all_requests`."""
        return {
            "apply_chat_template": True,
            "chat_template": self.render,
            "system_instruction": self.system_instruction,
            "fewshot_as_multiturn": self.multiturn,
        }


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, as lm-eval encodes it: a template that begins with BOS gets no second one."""
    bos = tokenizer.bos_token
    plain = [prompt for prompt in prompts if not has_bos_prefix(prompt, bos)]
    begun = [prompt for prompt in prompts if has_bos_prefix(prompt, bos)]
    encoded: dict[str, list[int]] = {}
    for some, how in ((plain, {}), (begun, {"add_special_tokens": False})):
        if some:
            encoded |= zip(some, map(list, tokenizer(some, **how)["input_ids"]), strict=True)
    return [encoded[prompt] for prompt in prompts]
