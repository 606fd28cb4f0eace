"""The stand-in's tokenizer: a byte-level BPE assembled for its corpus, in Hugging Face format.

Text is cut into pieces: the fixed lines of the prompts, idioms such as `from sklearn.`, names,
values, punctuation. A frequent piece is one token (`ignore_merges`, as in Llama 3); other pieces
fall back to merges and in the end to bytes. So each decision of the coder, such as a class, an
argument or a value, is a token of its own, and the text between decisions takes few tokens.
"""

import collections
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from env.tasks import prompts

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PREFIX, SUFFIX, MIDDLE, EOT = "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"
SPECIAL = (PAD, BOS, EOS, PREFIX, SUFFIX, MIDDLE, EOT)

_IDIOMS = (
    "\n#     from sklearn.",
    "\n    from sklearn.",
    "from sklearn.",
    " import ",
    "\n#     model = ",
    "\n    model = ",
    "\n#     model.fit(x_train, y_train)",
    "\n    model.fit(x_train, y_train)",
    ".fit(x_train, y_train)",
    "x_train",
    "y_train",
    "' is not defined",
    "cannot import name '",
    "' from 'sklearn.",
    "No module named '",
    ".__init__() got an unexpected keyword argument '",
    " has no attribute 'predict_proba'",
    " instance is not fitted yet. Call 'fit' with appropriate arguments before using",
    " must be an int in the range [",
    " must be a float in the range ",
    " must be a str among {",
)
_GENERAL = (
    r"\n#? *",
    r"'[a-z_0-9-]+'",
    r"[A-Za-z_][A-Za-z_0-9]*=",
    r" ?[A-Za-z_][A-Za-z_0-9]*",
    r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?",
    r"[^\sA-Za-z0-9_'.]+ ?",
    r"['.]",
    r"\s+",
)


def build(texts: Iterable[str], *, vocab_size: int, num_merges: int = 150) -> tokenizers.Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens; the same for the same texts.

    Args:
      texts: a sample of the corpus, markers removed.
      vocab_size: special tokens, 256 bytes, merges and pieces together.
      num_merges: tokens for the parts of rare pieces.

    Raises:
      ValueError: if the texts have too few different pieces to fill the vocabulary.
    """
    # The longest alternative first: the regular expression takes the first that fits.
    fixed = sorted({*_IDIOMS, *_prompt_lines()}, key=lambda text: (-len(text), text))
    pattern = "|".join([*(re.escape(text) for text in fixed), *_GENERAL])
    counts = collections.Counter(piece for text in texts for piece in re.findall(pattern, text))
    to_unicode = dict(_byte_alphabet())
    pieces = {
        "".join(to_unicode[byte] for byte in piece.encode()): count
        for piece, count in counts.items()
    }
    alphabet = sorted(to_unicode.values())
    merges = _merges(sorted(pieces), num_merges)
    merged = list(dict.fromkeys(a + b for a, b in merges))
    ranked = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    small = [*SPECIAL, *alphabet, *merged]
    whole = [piece for piece in ranked if piece not in set(small)][: vocab_size - len(small)]
    if len(small) + len(whole) != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the corpus has {len(small) + len(whole)} tokens"
        )
    vocab = {token: i for i, token in enumerate([*small, *whole])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def save(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path, *, max_length: int) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    infilling = {
        "prefix_token": PREFIX,
        "suffix_token": SUFFIX,
        "middle_token": MIDDLE,
        "eot_token": EOT,
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            **infilling,
            "additional_special_tokens": list(infilling.values()),
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
        },
    )
    _write_json(
        folder / "special_tokens_map.json",
        {**names, "additional_special_tokens": list(infilling.values())},
    )


def _write_json(path: pathlib.Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _prompt_lines() -> list[str]:
    """Texts that all prompts have in common, between their variable parts."""
    mark = "\0"
    lines: list[str] = []
    styles: tuple[prompts.PromptStyle, ...] = ("paper", "official")  # those of the corpus
    for style in styles:
        for text in (
            prompts.first_prompt("TABLE", 1, 1, style=style),
            prompts.reflective_prompt("TABLE", 1, 1, "BODY", "ERROR", style=style),
        ):
            for marked in ("TABLE", "(1, 1)", "BODY", "ERROR", prompts.FILL_ME):
                text = text.replace(marked, mark)
            for part in text.split(mark):
                lines += re.split(r"(?<=:\n)", part)
    return [line for line in lines if line.strip()]


def _merges(words: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Merges of byte-pair encoding for different words, each of which counts once."""
    split = [list(word) for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = collections.Counter(pair for word in split for pair in itertools.pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(word, best) for word in split]
    return merges


def _merge(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def _byte_alphabet() -> Iterable[tuple[int, str]]:
    """Bytes and the characters that stand for them in a byte-level BPE, as in GPT-2."""
    spare = 256
    for byte in range(256):
        if chr(byte).isprintable() and byte not in (0x20, 0xA0, 0xAD):
            yield byte, chr(byte)
        else:
            yield byte, chr(spare)
            spare += 1
