"""The tokens of the tiny policy: one a character, or one a word. Needs neither torch nor transformers."""

from __future__ import annotations

from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PAD: Final = "<pad>"
EOS: Final = "<eos>"
UNKNOWN: Final = "<unk>"
#: Printable ASCII and the newline, one token each.
CHARACTERS: Final = "\n" + "".join(map(chr, range(32, 127)))


def tiny_tokens(text: str = "") -> Tokenizer:
    """One token per character, or per word of `text`, and none that was not written: no BOS, no EOS added.

    Words and runs of punctuation are tokens; they are read back with one space between them.
    """
    splitter = pre_tokenizers.Whitespace() if text else pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    known = [word for word, _ in splitter.pre_tokenize_str(text or CHARACTERS)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([PAD, EOS, UNKNOWN, *known]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    if not text:
        tokenizer.decoder = decoders.Fuse()
    return tokenizer
