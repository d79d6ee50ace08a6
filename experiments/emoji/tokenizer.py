"""Train a real `CLIPTokenizer`: byte-pair encoding on the captions, in CLIP's own format."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from unlearn.concepts.vocabulary import Vocabulary

TOKENS, ENTRIES = 32, 2000


def corpus(words: Vocabulary) -> list[str]:
    """Every word that a caption can hold."""
    phrases = itertools.chain(*words.templates.values(), *words.style_phrases.values())
    objects = itertools.chain.from_iterable((n, *o.synonyms) for n, o in words.objects.items())
    return [*phrases, *objects, *words.background_phrases, *words.styles, *words.backgrounds]


def train_tokenizer(words: Vocabulary, folder: Path) -> CLIPTokenizer:
    """The tokenizer in `folder`, trained first if it is not there."""
    if not folder.exists():
        bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        bpe.normalizer = normalizers.Lowercase()
        split = pre_tokenizers.Whitespace()
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=ENTRIES,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
        )
        bpe.train_from_iterator(corpus(words), trainer)
        model = json.loads(bpe.to_str())["model"]
        merges = [tuple(m) if isinstance(m, list) else tuple(m.split()) for m in model["merges"]]
        built = CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=TOKENS)
        built.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
